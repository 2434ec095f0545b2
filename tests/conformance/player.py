"""Plays transcripts against an endpoint: each over a connection of its own, every wait with a deadline."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zmq

from tests.conformance.expect import difference, filled, row_bytes, wrong_rows
from tests.conformance.transcript import Answer, Do, Expect, Rows, Send, Transcript

ANSWER_S = 10.0  # for one answer: a slow machine's model on one core
GONE_S = 5.0  # for a file to be unlinked
LAST_PING = 0x7E57


class Differs(Exception):
    """What came is not what the transcript says; or nothing came."""


class CannotTell(Exception):
    """The endpoint does not offer what the transcript is about."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`verdict` is ok, FAIL or skip; `reason` is empty for ok."""

    name: str
    verdict: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:4}  {self.name}{': ' if self.reason else ''}{self.reason}"


@dataclass(slots=True)
class Player:
    """One connection. `known` is what the last welcome said of limits and model."""

    sock: zmq.Socket[bytes]
    known: dict[str, Any] = field(default_factory=dict)
    segment: str = ""
    locked: int = -1
    room: mmap.mmap | None = None

    def send(self, step: Send) -> None:
        message = step.message
        frame = message if isinstance(message, bytes) else msgpack.packb(filled(message, self.known))
        self.sock.send_multipart([frame, *step.more])

    def receive(self, line: int, awaited: object) -> tuple[dict[str, Any], bytes]:
        """(message, second frame) of what comes next."""
        if not self.sock.poll(round(ANSWER_S * 1e3)):
            raise Differs(f"line {line}: nothing came within {ANSWER_S:g} s, awaited {awaited}")
        frame, *more = self.sock.recv_multipart()
        try:
            message = msgpack.unpackb(frame)
        except ValueError as error:
            raise Differs(f"line {line}: {frame[:40]!r} came, which is no msgpack") from error
        if not isinstance(message, dict) or len(more) > 1:
            raise Differs(f"line {line}: {message!r} and {len(more)} more frames came, not one map")
        return message, more[0] if more else b""

    def expect(self, answers: tuple[Answer, ...]) -> None:
        left = list(answers)
        while left:
            message, payload = self.receive(left[0].line, left[0].pattern)
            found = [(answer, difference(answer.pattern, message, self.known)) for answer in left]
            answer = next((answer for answer, differs in found if not differs), None)
            if answer is None:
                raise Differs(f"line {left[0].line}: {found[0][1]}; {short(message)} came")
            left.remove(answer)
            self.learn(message)
            self.look(answer, payload)

    def learn(self, message: dict[str, Any]) -> None:
        if message.get("kind") == "welcome":
            self.known = {**message["models"][0], **message["limits"], "segment_bytes": message.get("segment_bytes", 0)}
            self.segment = message.get("segment", "")

    def look(self, answer: Answer, payload: bytes) -> None:
        """At the rows. A message about which the transcript says nothing of them has no second frame."""
        wanted = answer.rows
        if wanted is None or wanted.at is not None:
            if payload:
                raise Differs(f"line {answer.line}: a second frame of {len(payload)} bytes came")
            if wanted is None:
                return
        dim = wanted.dim or self.known["dim"]
        wrong = wrong_rows(wanted, self.read(wanted, dim) if wanted.at is not None else payload, dim)
        if wrong:
            raise Differs(f"line {answer.line}: {wrong}")

    def read(self, wanted: Rows, dim: int) -> bytes:
        if self.room is None or wanted.at is None:
            raise CannotTell("no segment is mapped")
        return self.room[wanted.at : wanted.at + wanted.rows * row_bytes(dim, wanted.dtype)]

    # ── beside the socket ──

    def map(self, line: int) -> None:
        """The last welcome's segment, as the page says: read-only, locked first, of the stated size, nobody else's to write."""
        if not self.segment:
            raise CannotTell("no segment is offered here")
        self.close()
        self.locked = os.open(self.segment, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        fcntl.flock(self.locked, fcntl.LOCK_SH)
        found = os.fstat(self.locked)
        if found.st_size != self.known["segment_bytes"] or found.st_mode & 0o027:
            raise Differs(f"line {line}: a segment of {found.st_size} bytes, mode {found.st_mode & 0o777:o}")
        fd = os.open(self.segment, os.O_RDONLY | os.O_CLOEXEC)  # mmap keeps a duplicate of its own: not of the locked one
        self.room = mmap.mmap(fd, found.st_size, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fd)

    def unlock(self, line: int) -> None:  # noqa: ARG002 - all of transcript.ACTIONS are called alike
        """The client's sign of life ends."""
        os.close(self.locked)
        self.locked = -1

    def gone(self, line: int) -> None:
        """The file of the last welcome's segment is unlinked."""
        give_up_at = time.monotonic() + GONE_S
        while os.path.exists(self.segment):
            if time.monotonic() > give_up_at:
                raise Differs(f"line {line}: the segment is still there after {GONE_S:g} s")
            time.sleep(0.01)

    def close(self) -> None:
        if self.locked >= 0:
            os.close(self.locked)
        if self.room is not None:
            self.room.close()
        self.locked, self.room = -1, None


def play(endpoint: str, transcript: Transcript) -> Outcome:
    """Its outcome. The session is ended in any case."""
    with _player(endpoint) as player:
        try:
            for step in transcript.steps:
                _take(player, step)
            _nothing_more(player)
        except CannotTell as reason:
            return Outcome(transcript.name, "skip", str(reason))
        except (Differs, KeyError, OSError) as reason:
            return Outcome(transcript.name, "FAIL", str(reason))
    return Outcome(transcript.name, "ok")


@contextmanager
def _player(endpoint: str) -> Iterator[Player]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 200)
    sock.connect(endpoint)
    player = Player(sock)
    try:
        yield player
        with contextlib.suppress(zmq.Again):
            sock.send(msgpack.packb({"kind": "bye"}), zmq.NOBLOCK)
    finally:
        player.close()
        sock.close()
        context.term()


def _take(player: Player, step: Send | Expect | Do) -> None:
    match step:
        case Send():
            player.send(step)
        case Expect():
            player.expect(step.answers)
        case Do():
            getattr(player, step.action)(step.line)


def _nothing_more(player: Player) -> None:
    """The next message is the answer to a ping: `pong` in a session, `who` without one."""
    player.send(Send(0, {"kind": "ping", "id": LAST_PING}))
    message, _ = player.receive(0, "the answer to a ping at the end")
    if message.get("kind") != "who" and (message.get("kind"), message.get("id")) != ("pong", LAST_PING):
        raise Differs(f"after the last line {short(message)} came, which nothing had asked for")


def short(message: object) -> str:
    text = str(message)
    return text if len(text) <= 200 else f"{text[:200]}…"
