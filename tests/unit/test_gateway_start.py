"""What one gateway is told on its command line."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from embedpool.errors import ConfigError
from embedpool.gateway.__main__ import main, options, parser
from embedpool.gateway.address import ANSWER_MS, bind, is_loopback, parse_listen, reserve, url, where
from embedpool.gateway.options import Options, read_keys


def test_nothing_said_is_the_defaults() -> None:
    assert options(parser().parse_args([])) == Options()


def test_every_flag_reaches_its_option() -> None:
    flags = ["--compat", "akidb-strict", "--compat=tei-1.8", "--model-alias=a", "--no-auto-truncate", "--timeout-s=5"]
    flags += ["--max-client-batch-size=4", "--max-concurrent-requests=5", "--max-body-bytes=6", "--receive-timeout-s=7"]
    found = options(parser().parse_args([*flags, "--max-timeout-s=8"]))
    assert found == Options(
        compat=frozenset({"akidb-strict", "tei-1.8"}),
        aliases=("a",),
        auto_truncate=False,
        timeout_s=5.0,
        max_client_batch=4,
        max_concurrent=5,
        max_body_bytes=6,
        receive_timeout_s=7.0,
        max_timeout_s=8.0,
    )


@pytest.mark.parametrize(
    "flag", ["--timeout-s=0", "--timeout-s=nan", "--max-body-bytes=-1", "--max-timeout-s=1", "--max-timeout-s=nan"]
)
def test_a_number_without_sense_is_a_mistake(flag: str) -> None:
    with pytest.raises(ConfigError, match="must be"):
        options(parser().parse_args([flag]))


@pytest.mark.parametrize(
    ("listen", "place"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::1]:0", ("::1", 0)), ("localhost:1", ("localhost", 1))],
)
def test_an_address_is_host_and_port(listen: str, place: tuple[str, int]) -> None:
    assert parse_listen(listen) == place


@pytest.mark.parametrize("listen", ["8080", ":8080", "host:", "host:port", "host:65536", "host:99999999999", ""])
def test_another_address_is_a_mistake(listen: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        parse_listen(listen)


def test_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "::10")))


def test_a_connection_whose_client_takes_nothing_is_ended_by_the_kernel() -> None:
    with bind("127.0.0.1", 0)[0] as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == ANSWER_MS


def test_an_address_that_cannot_be_had_is_a_mistake() -> None:
    with bind("127.0.0.1", 0)[0] as taken, pytest.raises(ConfigError, match="Address already in use"):
        bind(*taken.getsockname())
    with pytest.raises(ConfigError, match="cannot listen"):
        bind("no-such-host.invalid", 0)


def test_keys_are_the_lines_of_a_file_and_no_key_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n\n  second \n")
    assert read_keys(str(file)) == ("first", "second")
    file.write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(str(tmp_path / "missing"))


def test_a_mistake_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "HOST:PORT" in said


def test_grpc_without_its_libraries_is_one_sentence_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "embedpool.gateway.grpc_akidb", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)  # as if it were not installed
    assert main(["--listen", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]) == 2
    said = capsys.readouterr().err
    assert said == "embedpool gateway: --grpc needs grpc: pip install 'embedpool[grpc]'\n"


def test_a_reserved_port_is_a_librarys_that_shares_it_and_nobody_elses() -> None:
    with reserve("127.0.0.1", 0) as held:
        host, port = held.getsockname()
        assert where(held) == f"127.0.0.1:{port}"
        for get in (bind, reserve):
            with pytest.raises(ConfigError, match="Address already in use"):
                get(host, port)
        with socket.create_server((host, port), reuse_port=True), socket.create_connection((host, port), timeout=5):
            pass
    bind(host, port)[0].close()


def test_several_sockets_share_one_address() -> None:
    made = bind("127.0.0.1", 0, 3)
    try:
        assert len({sock.getsockname() for sock in made}) == 1
        assert url(made[0]) == f"http://127.0.0.1:{made[0].getsockname()[1]}"
    finally:
        for sock in made:
            sock.close()
