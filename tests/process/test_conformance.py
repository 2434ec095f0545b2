"""A pool says what docs/protocol.md promises. Servers with one mistake each show that the transcripts can fail."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from tests.conformance.player import play
from tests.conformance.transcript import read, transcripts
from tests.support import serving

ROOT = Path(__file__).parent.parent.parent
DIM = 16
LIMITS = {"request_rows": 100, "request_bytes": 1 << 20, "text_chars": 1000, "inline_bytes": 1 << 20}
MODEL = {"name": "fake", "dim": DIM, "max_tokens": 512, "fingerprint": "fake-1"}
Replies = list[tuple[dict[str, Any], bytes]]  # message and second frame


@pytest.mark.parametrize("model", ["echo", "minilm"])
def test_a_pool_says_what_the_page_promises(model: str) -> None:
    with serving(model=model) as server:
        outcomes = [play(server.endpoint, each) for each in transcripts()]
    assert len(outcomes) >= 50
    assert [str(each) for each in outcomes if each.verdict != "ok"] == []


def test_over_tcp_what_needs_a_segment_is_said_to_be_left_out_and_all_else_holds() -> None:
    with serving("--endpoint", "tcp://127.0.0.1:27641") as server:
        outcomes = [play("tcp://127.0.0.1:27641", each) for each in transcripts()]
        assert server.process.poll() is None
    assert {each.reason for each in outcomes if each.verdict != "ok"} == {"no segment is offered here"}
    assert sum(each.verdict == "skip" for each in outcomes) < 10


def test_the_command_prints_a_line_for_each_transcript_and_a_verdict() -> None:
    with serving() as server:
        done = _command(server.endpoint, "bye")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("hold, 0 do not, 0 could not be told")
    assert "ok    after bye a client is unknown" in done.stdout.splitlines()
    assert _command().returncode == _command("not an endpoint").returncode == 2


# ── that it can fail ──


def honest(message: dict[str, Any] | None, known: set[bytes], sender: bytes) -> Replies:
    """A server of a few rules of the page, with none of them wrong."""
    match message:
        case {"kind": "hello", "version": 1}:
            known.add(sender)
            return [({"kind": "welcome", "version": 1, "limits": LIMITS, "models": [MODEL]}, b"")]
        case {"kind": "hello"}:
            return [({"kind": "refused", "id": None, "code": "bad_version", "message": "not 1"}, b"")]
        case {"kind": "bye"}:
            known.discard(sender)
            return []
        case _ if sender not in known:
            return [({"kind": "who", "router": 5}, b"")]
        case {"kind": "ping", "id": id}:
            return [({"kind": "pong", "id": id}, b"")]
        case {"kind": "embed", "id": id, "texts": texts}:
            rows = {"rows": len(texts), "dim": DIM, "tokens": len(texts), "fingerprint": MODEL["fingerprint"]}
            return [({"kind": "vectors", "id": id, "inline": True, **rows}, b"".join(map(vector, texts)))]
    return []


def vector(text: str) -> bytes:
    drawn = np.random.default_rng(list(text.encode())).normal(size=DIM)
    return (drawn / np.linalg.norm(drawn)).astype("<f4").tobytes()


def answers_twice(replies: Replies) -> Replies:
    return [reply for reply in replies for _ in range(2 if reply[0]["kind"] == "vectors" else 1)]


def answers_the_wrong_ping(replies: Replies) -> Replies:
    return [({**message, "id": 1} if message["kind"] == "pong" else message, rows) for message, rows in replies]


def loses_the_last_row(replies: Replies) -> Replies:
    return [(message, rows[: -DIM * 4]) for message, rows in replies]


def gives_every_text_the_same_vector(replies: Replies) -> Replies:
    return [(message, rows[: DIM * 4] * (len(rows) // (DIM * 4))) for message, rows in replies]


def does_not_normalise(replies: Replies) -> Replies:
    return [(message, (np.frombuffer(rows, "<f4") * np.float32(1.5)).tobytes()) for message, rows in replies]


def calls_a_wrong_version_a_bad_message(replies: Replies) -> Replies:
    return [({**message, "code": "bad_message"} if "code" in message else message, rows) for message, rows in replies]


def says_nothing(_: Replies) -> Replies:
    return []


ONE = "one text, one vector of unit length"
TWO = "an id may be used again once it was answered"
PINGS = "every ping has its pong, up to the largest id"
VERSION = "a hello of another version is refused, and opens nothing"


@pytest.mark.parametrize(
    ("mistake", "name", "said"),
    [
        (answers_twice, ONE, "after the last line"),
        (answers_the_wrong_ping, PINGS, "id is 1, not 0"),
        (loses_the_last_row, ONE, "0 bytes of vectors, not 1 rows of 64"),
        (gives_every_text_the_same_vector, TWO, "different texts have the same vector"),
        (does_not_normalise, ONE, "row 0 has length 1.5000, not 1"),
        (calls_a_wrong_version_a_bad_message, VERSION, "code is 'bad_message', not 'bad_version'"),
    ],
)
def test_a_server_with_one_mistake_fails_where_an_honest_one_does_not(
    mistake: Callable[[Replies], Replies], name: str, said: str, tmp_path: Path
) -> None:
    (transcript,) = transcripts(name)
    with _fake(f"ipc://{tmp_path}/honest", lambda replies: replies) as endpoint:
        assert play(endpoint, transcript).verdict == "ok"
    with _fake(f"ipc://{tmp_path}/wrong", mistake) as endpoint:
        outcome = play(endpoint, transcript)
    assert outcome.verdict == "FAIL"
    assert said in outcome.reason


def test_a_server_that_says_nothing_fails_within_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conformance.player.ANSWER_S", 0.2)
    with _fake(f"ipc://{tmp_path}/silent", says_nothing) as endpoint:
        outcome = play(endpoint, transcripts(ONE)[0])
    assert outcome.verdict == "FAIL"
    assert "nothing came within 0.2 s" in outcome.reason


@pytest.mark.parametrize("line", ["? what", "> {", "> hex 0", '< {"kind": "vectors"} | some rows', "! sing"])
def test_a_line_that_is_none_of_a_transcript_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        read(f"= a name\n{line}\n")


@contextmanager
def _fake(endpoint: str, mistake: Callable[[Replies], Replies]) -> Iterator[str]:
    """A server in a thread of this process, until the end of the block."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.ROUTER)
    sock.bind(endpoint)
    over = threading.Event()
    thread = threading.Thread(target=_serve, args=(sock, mistake, over))
    thread.start()
    try:
        yield endpoint
    finally:
        over.set()
        thread.join(5.0)
        sock.close(0)
        context.term()


def _serve(sock: zmq.Socket[bytes], mistake: Callable[[Replies], Replies], over: threading.Event) -> None:
    known: set[bytes] = set()
    while not over.is_set():
        if sock.poll(20):
            sender, frame = sock.recv_multipart()[:2]
            for message, rows in mistake(honest(msgpack.unpackb(frame) if frame else None, known, sender)):
                sock.send_multipart([sender, msgpack.packb(message), *([rows] if rows else [])])


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.conformance", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
