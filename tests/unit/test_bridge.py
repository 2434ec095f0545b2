"""The bridge's words and order; the process itself is run in tests/process/test_bridge.py."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpool.bridge import Bridge, Refusal, Settings, check
from embedpool.errors import ConfigError
from embedpool.lines import Owed, Pending, read_lines, serve
from embedpool.protocol import ModelCard

NOBODY = "ipc:///nowhere/embedpool.sock"
AWAY = Settings(endpoint=NOBODY, timeout_s=0.001)


@contextmanager
def bridge() -> Iterator[Bridge]:
    made = Bridge(AWAY)
    try:
        yield made
    finally:
        made.close()


def said(line: bytes) -> dict[str, Any]:
    """What one line is answered with where there is no pool."""
    with bridge() as found:
        reply = found.submit(line).result(10)
    assert reply.endswith(b"\n") and reply.count(b"\n") == 1
    answer: dict[str, Any] = json.loads(reply)
    return answer


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ping_is_answered_without_a_pool() -> None:
    assert said(b'{"method":"ping","params":{}}') == {"status": "ok", "message": "pong"}
    assert said(b'{"params":{},"method":"ping"}') == {"status": "ok", "message": "pong"}


def test_an_unknown_method_is_named() -> None:
    assert said(b'{"method":"dance","params":{}}') == {"status": "error", "message": "Unknown method: dance"}
    assert said(b"{}") == {"status": "error", "message": "Unknown method: "}


@pytest.mark.parametrize(
    "line", [b"x", b"[]", b"3", b'"a"', b"{", b"\xff", b'{"method":1}', b'{"method":"embed_batch","params":7}']
)
def test_what_is_no_request_is_said_to_be_no_json(line: bytes) -> None:
    answer = said(line)
    assert answer["status"] == "error"
    assert answer["message"].startswith("Invalid JSON: ")


def test_a_model_that_was_not_loaded_is_named() -> None:
    answer = said(b'{"method":"embed_batch","params":{"model":"m","inputs":["a"],"normalize":true}}')
    assert answer == {"status": "error", "message": "Model not loaded: m. Call load_model first."}


def test_without_a_pool_loading_fails_with_the_reason_and_embedding_with_akidbs_text() -> None:
    with bridge() as found:
        load = found.submit(b'{"method":"load_model","params":{"model":"m","cache_dir":"~/.cache/akidb/models"}}')
        embed = found.submit(b'{"method":"embed_batch","params":{"model":"m","inputs":["a"],"normalize":true}}')
        assert "no pool is running" in json.loads(load.result(10))["message"]
        assert json.loads(embed.result(10))["message"] == "Model not loaded: m. Call load_model first."


def test_a_pool_of_another_model_or_precision_is_refused() -> None:
    card = ModelCard("embeddinggemma-300m", 768, 2048, "f", precision="q8")
    for name in ("embeddinggemma-300m", "onnx-community/embeddinggemma-300m-ONNX"):
        check(name, card, "")
        check(name, card, "q8")
    with pytest.raises(Refusal, match="serves embeddinggemma-300m, not minilm"):
        check("minilm", card, "")
    with pytest.raises(Refusal, match="--precision fp32"):
        check("embeddinggemma-300m", card, "fp32")


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_environment_decides() -> None:
    found = Settings.read({"EMBEDPOOL_ENDPOINT": NOBODY})
    assert found == Settings(endpoint=NOBODY, private=False, precision="", timeout_s=30.0)
    more = {"EMBEDPOOL_BRIDGE": "private", "AKIDB_EMBEDDING_DTYPE": "float32", "EMBEDPOOL_BRIDGE_TIMEOUT_S": "5"}
    assert Settings.read({"EMBEDPOOL_ENDPOINT": NOBODY, **more}) == Settings(
        endpoint=NOBODY, private=True, precision="fp32", timeout_s=5.0
    )


@pytest.mark.parametrize("dtype", ["q8", "q4", "uint8"])
def test_akidbs_other_types_are_precisions_of_the_same_name(dtype: str) -> None:
    assert Settings.read({"EMBEDPOOL_ENDPOINT": NOBODY, "AKIDB_EMBEDDING_DTYPE": dtype}).precision == dtype


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AKIDB_EMBEDDING_DTYPE", "bfloat16"),
        ("EMBEDPOOL_BRIDGE", "mine"),
        ("EMBEDPOOL_BRIDGE_TIMEOUT_S", "0"),
        ("EMBEDPOOL_BRIDGE_TIMEOUT_S", "nan"),
        ("EMBEDPOOL_BRIDGE_TIMEOUT_S", "soon"),
    ],
)
def test_a_setting_without_sense_is_a_mistake_that_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Settings.read({"EMBEDPOOL_ENDPOINT": NOBODY, name: value})


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_blank_lines_are_passed_over_and_the_last_needs_no_end() -> None:
    assert list(read_lines(io.BytesIO(b"a\n\n  \t\r\nb\nc"))) == [b"a\n", b"b\n", b"c"]


def test_a_line_that_is_too_long_is_one_line_all_the_same() -> None:
    assert list(read_lines(io.BytesIO(b"x" * 25 + b"\ny\n"), most_bytes=10)) == [b"x" * 10, b"y\n"]


def test_replies_keep_the_order_of_requests_whichever_is_ready_first() -> None:
    waiting: list[Future[bytes]] = []
    read_fd, write_fd = os.pipe()

    def submit(line: bytes) -> Future[bytes]:
        waiting.append(Future())
        if line == b"2\n":  # the last one: all come to be, in the opposite order
            for number, future in reversed(list(enumerate(waiting))):
                future.set_result(b"reply %d\n" % number)
        return waiting[-1]

    assert serve(submit, io.BytesIO(b"0\n1\n2\n"), write_fd)
    os.close(write_fd)
    with open(read_fd, "rb") as replies:
        assert replies.read() == b"reply 0\nreply 1\nreply 2\n"


def test_a_reply_of_32_vectors_goes_into_the_pipe_whole_before_anybody_reads_it() -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)  # a pipe that is too small raises, and does not wait for ever
    done: Future[bytes] = Future()
    done.set_result(reply := b"0.123456789," * (32 * 768) + b"\n")
    assert serve(lambda _: done, io.BytesIO(b"0\n"), write_fd)
    os.close(write_fd)
    with open(read_fd, "rb") as replies:
        assert replies.read() == reply


def test_replies_may_go_into_what_is_no_pipe(tmp_path: Path) -> None:
    done: Future[bytes] = Future()
    done.set_result(b"reply\n")
    with (tmp_path / "replies").open("wb", buffering=0) as file:
        assert serve(lambda _: done, io.BytesIO(b"0\n"), file.fileno())
    assert (tmp_path / "replies").read_bytes() == b"reply\n"


def test_when_nobody_reads_the_replies_serving_ends() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done: Future[bytes] = Future()
    done.set_result(b"reply\n")
    assert not serve(lambda _: done, io.BytesIO(b"0\n"), write_fd)
    os.close(write_fd)


def test_reading_waits_while_too_much_is_pending_and_goes_on_when_a_reply_was_taken() -> None:
    pending, done = Pending(most_bytes=10), Future[bytes]()
    done.set_result(b"reply\n")
    pending.put(Owed(done, 11))
    blocked = threading.Thread(target=pending.put, args=(Owed(None),))
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    assert list(pending.replies()) == [b"reply\n"]
    blocked.join(10)
    assert not blocked.is_alive()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
METHODS = st.sampled_from(["ping", "load_model", "embed_batch"]) | JSON
PARAMS = st.fixed_dictionaries({}, optional={"model": JSON, "inputs": st.lists(st.text()) | JSON, "normalize": JSON}) | JSON
LINES = st.binary(max_size=60).filter(lambda line: b"\n" not in line) | st.fixed_dictionaries(
    {}, optional={"method": METHODS, "params": PARAMS}
).map(lambda found: json.dumps(found).encode())


@settings(max_examples=100, deadline=None)
@given(sent=st.lists(LINES, max_size=8))
def test_any_lines_get_one_reply_each_in_one_line_each(sent: list[bytes]) -> None:
    read_fd, write_fd = os.pipe()
    with bridge() as found:
        assert serve(found.submit, io.BytesIO(b"".join(line + b"\n" for line in sent)), write_fd)
    os.close(write_fd)
    with open(read_fd, "rb") as replies:
        answers = [json.loads(line) for line in replies]
    assert len(answers) == sum(bool(line.strip()) for line in sent)
    assert {answer["status"] for answer in answers} <= {"ok", "error"}
