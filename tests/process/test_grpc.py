"""gRPC of a real gateway in front of a real pool, with gRPC's own client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from tests.gateway import Gateway, gateway
from tests.rpc import PACKAGE, embed_request, messages, stub
from tests.support import Server, alive, kill, launch, part, router_of, same, serving, wait_until, workers_of

PORT = "--grpc=127.0.0.1:0"
EMBED = f"/{PACKAGE}.EmbeddingService/Embed"


@pytest.fixture(scope="module", autouse=True)
def _grpc_is_running() -> None:
    """Its library keeps descriptors for good: made before any are counted."""
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/nobody/is")(b"", timeout=5)


@pytest.fixture(scope="module")
def echo() -> Iterator[Gateway]:
    with serving() as server, gateway(server.endpoint, PORT) as found:
        yield found


def vectors(answer: object) -> np.ndarray:
    return np.array([row.values for row in answer.embeddings], np.float32)  # type: ignore[attr-defined]


def test_the_vectors_are_those_of_http(echo: Gateway) -> None:
    texts = [f"text {i}" for i in range(32)]
    with stub(echo.grpc) as client:
        answer = client.embed(embed_request(texts, model="mine"), timeout=10)
        card = client.model_info(messages()["GetModelInfoRequest"](), timeout=10)
    over_http = echo.post("/api/v1/embed", {"texts": texts, "model": "mine"}).json()
    assert same(vectors(answer), texts)
    assert np.array_equal(vectors(answer), np.array(over_http["embeddings"], np.float32))
    assert (answer.model, answer.dimension) == (over_http["model"], over_http["dimension"])
    assert answer.usage.total_tokens == over_http["usage"]["total_tokens"]
    assert (card.model, card.dimension, card.max_tokens) == ("echo:384", 384, 512)


def test_many_at_once_on_one_connection_get_each_their_own(echo: Gateway) -> None:
    with stub(echo.grpc) as client, ThreadPoolExecutor(16) as threads:

        def ask(i: int) -> bool:
            return same(
                vectors(client.embed(embed_request([f"text {i}", f"more {i}"]), timeout=30)), [f"text {i}", f"more {i}"]
            )

        assert all(threads.map(ask, range(400)))


def test_a_message_over_the_limit_is_refused_and_one_below_it_is_not(echo: Gateway) -> None:
    with stub(echo.grpc) as client:
        assert client.embed(embed_request(["a" * 900_000] * 4), timeout=30).dimension == 384
        with pytest.raises(grpc.RpcError) as caught:
            client.embed(embed_request(["a" * 900_000] * 5), timeout=30)
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED


def test_what_is_no_message_is_invalid(echo: Gateway) -> None:
    with grpc.insecure_channel(echo.grpc) as channel:
        for data in (b"\xff" * 8, b"\x0a\x02\xff\xff"):  # no protobuf; a text that is no UTF-8
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(EMBED)(data, timeout=10)
            assert caught.value.code() is StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{PACKAGE}.EmbeddingService/Nothing")(b"", timeout=10)
        assert caught.value.code() is StatusCode.UNIMPLEMENTED


def test_a_port_that_gets_no_grpc_goes_on_serving(echo: Gateway) -> None:
    host, _, port = echo.grpc.rpartition(":")
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 10_000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 10_000):
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(data)
    with stub(echo.grpc) as client:
        assert client.embed(embed_request(["a"]), timeout=10).dimension == 384


def _stopped_pool(server: Server) -> list[int]:
    stopped = workers_of(server.pid)
    for pid in stopped:
        kill(pid, signal.SIGSTOP)
    return stopped


@pytest.mark.parametrize("how", ["cancels", "deadline", "leaves"])
def test_a_client_that_gives_up_ends_its_work_in_the_pool(how: str) -> None:
    with serving() as server, gateway(server.endpoint, PORT) as found:
        with stub(found.grpc) as client:
            client.embed(embed_request(["warm"]), timeout=10)
            stopped = _stopped_pool(server)
            try:
                began_at = time.monotonic()
                call = client.embed.future(embed_request(["a text"]), timeout=2.0 if how == "deadline" else 60.0)  # type: ignore[attr-defined]
                wait_until(lambda: found.number("embedpool_requests_open") == 1, 5.0)
                if how == "cancels":
                    assert call.cancel()
                elif how == "leaves":
                    client.channel.close()
                else:
                    assert call.code() is StatusCode.DEADLINE_EXCEEDED
                    assert time.monotonic() - began_at < 4.0
                # Whoever asks for the number is one of them.
                wait_until(lambda: found.number("embedpool_gateway_requests_open") == 1, 5.0)
            finally:
                for pid in stopped:
                    kill(pid, signal.SIGCONT)
        wait_until(lambda: found.number("embedpool_requests_open") == 0, 5.0)
        with stub(found.grpc) as client:
            assert client.embed(embed_request(["a"]), timeout=10).dimension == 384


def test_a_message_that_does_not_come_holds_no_place_for_ever() -> None:
    with (
        serving() as server,
        gateway(server.endpoint, PORT, "--receive-timeout-s=0.5", "--max-concurrent-requests=1") as found,
        grpc.insecure_channel(found.grpc) as channel,
    ):
        sent = threading.Event()
        method = channel.stream_unary(EMBED)
        call = method.future(iter(lambda: sent.wait(10) and b"", b""), timeout=10)  # opens the request and sends nothing
        try:
            wait_until(lambda: found.number("embedpool_gateway_requests_open") == 2, 5.0)
            with stub(found.grpc) as client, pytest.raises(grpc.RpcError) as caught:
                client.embed(embed_request(["a"]), timeout=10)
            assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
            assert call.code() is StatusCode.DEADLINE_EXCEEDED
            assert "did not come" in call.details()
            with stub(found.grpc) as client:
                assert client.embed(embed_request(["a"]), timeout=10).dimension == 384
        finally:
            sent.set()


def test_at_a_stop_what_was_accepted_is_answered() -> None:
    with serving() as server, gateway(server.endpoint, PORT) as found, stub(found.grpc) as client:
        client.embed(embed_request(["warm"]), timeout=10)
        stopped = _stopped_pool(server)
        try:
            call = client.embed.future(embed_request(["a text"]), timeout=30)  # type: ignore[attr-defined]
            wait_until(lambda: found.number("embedpool_requests_open") == 1, 5.0)
            found.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert alive(found.process.pid)
        finally:
            for pid in stopped:
                kill(pid, signal.SIGCONT)
        assert same(vectors(call.result()), ["a text"])
        assert found.process.wait(15) == 0


def test_a_gateway_that_cannot_serve_grpc_ends_and_never_says_that_it_is_ready() -> None:
    ready, tell = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fds = (listening.fileno(), tell)
        flags = [f"--listen-fd={fds[0]}", f"--ready-fd={tell}", "--grpc=192.0.2.1:1"]  # an address of nobody, RFC 5737
        done = subprocess.run(
            [sys.executable, "-P", "-m", "embedpool.gateway", "--endpoint=ipc:///nowhere", *flags],
            pass_fds=fds,
            capture_output=True,
            timeout=30,
            check=False,
        )
    os.close(tell)
    assert (done.returncode, os.read(ready, 1)) == (3, b"")
    os.close(ready)


# ── as a part of a pool ──────────────────────────────────────────────────────────────────────────────────────────────


def place_of(server: Server) -> str:
    (found,) = [word.rstrip(",") for word in server.ready_line.split() if word.startswith("grpc://")]
    return found.removeprefix("grpc://")


def test_a_pool_serves_it_through_all_its_gateways_and_replaces_one_that_is_killed() -> None:
    with serving("--http=127.0.0.1:0", PORT, "--http-workers=2") as server, stub(place_of(server)) as client:
        assert len(part(server.pid, "embedpool-http")) == 2
        for victim in (part(server.pid, "embedpool-http")[0], router_of(server.pid), workers_of(server.pid)[0]):
            kill(victim)
            answer = client.embed(embed_request(["goes on"]), timeout=20, wait_for_ready=True)
            assert same(vectors(answer), ["goes on"])
        wait_until(lambda: len(part(server.pid, "embedpool-http")) == 2, 5.0)


def test_the_only_gateway_is_killed_and_the_port_is_nobody_elses_meanwhile() -> None:
    with serving("--http=127.0.0.1:0", PORT) as server:
        host, _, port = place_of(server).rpartition(":")
        (victim,) = part(server.pid, "embedpool-http")
        kill(victim)
        wait_until(lambda: not alive(victim), 2.0)
        with pytest.raises(OSError, match="Address already in use"):
            socket.create_server((host, int(port)))
        with stub(place_of(server)) as client:
            assert client.embed(embed_request(["a"]), timeout=20, wait_for_ready=True).dimension == 384


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--grpc", "127.0.0.1:0"], "give --http too"),
        (["--http", "127.0.0.1:0", "--grpc", "nowhere"], "HOST:PORT"),
        (["--http", "127.0.0.1:0", "--grpc", "taken"], "Address already in use"),
    ],
    ids=["alone", "address", "taken"],
)
def test_a_mistake_is_one_sentence(flags: list[str], reason: str) -> None:
    with serving("--http=127.0.0.1:0", PORT) as other:
        process = launch(["serve", "--model", "echo", *[place_of(other) if flag == "taken" else flag for flag in flags]])
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 2
    assert reason in said and said.count("\n") == 1
