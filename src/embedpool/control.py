"""What supervisor and router say to each other, over a SOCK_SEQPACKET pair that the router inherits.

One msgpack message per packet. Both ends are ours, so nothing is validated beyond its shape; the end of file is the sign that
the other is gone. The supervisor thereby needs no ZeroMQ, and nothing that a peer sends can reach it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from embedpool.protocol import ModelCard

PACKET_BYTES = 131_072  # a router's specification with many prompts is the largest; the socket's buffer has 200 kB
ALIVE_S = 0.5


class Spawned(Struct, frozen=True, tag=True):
    """supervisor → router: a worker was started. `worker` is never used twice, `index` is its place in the pool. It takes jobs
    while the pool's model is its own."""

    worker: int
    index: int
    pid: int
    cores: tuple[int, ...]
    restarts: int
    model: ModelCard


class Reaped(Struct, frozen=True, tag=True):
    """supervisor → router: the worker has ended and was waited for: it cannot write any more."""

    worker: int
    reason: str
    begun: int = 0  # the last job that it began, by its own record; 0 for none


class Retire(Struct, frozen=True, tag=True):
    """supervisor → router: give this worker no more jobs, and say WorkerRetired when it has none."""

    worker: int


class Switch(Struct, frozen=True, tag=True):
    """supervisor → router: from now on this specification (JSON of a RouterSpec) holds. Workers of another model are retired.
    `relearn`: workers work at another speed now."""

    spec: str
    relearn: bool


class Reloaded(Struct, frozen=True, tag=True):
    """supervisor → router, for its status: how the last reload went. `count` is that of reloads that have ended."""

    count: int
    state: Literal["none", "running", "done", "failed"]
    reason: str


class Drain(Struct, frozen=True, tag=True):
    """supervisor → router: refuse new requests, say WorkDone when all open ones are answered."""


class GivenUp(Struct, frozen=True, tag=True):
    """supervisor → router: no worker can be started."""

    reason: str


class Bound(Struct, frozen=True, tag=True):
    """router → supervisor: clients can connect."""


class CannotBind(Struct, frozen=True, tag=True):
    """router → supervisor: it ends, for this reason."""

    reason: str


class WorkerJoined(Struct, frozen=True, tag=True):
    """router → supervisor: the worker takes jobs."""

    worker: int


class WorkerWaits(Struct, frozen=True, tag=True):
    """router → supervisor: the worker is ready, for another model than that which is served."""

    worker: int


class WorkerRetired(Struct, frozen=True, tag=True):
    """router → supervisor: after Retire or Switch, the worker has nothing to do any more."""

    worker: int


class Alive(Struct, frozen=True, tag=True):
    """router → supervisor: every ALIVE_S, so that a router that is stopped, or loops, is noticed."""


class WorkerHung(Struct, frozen=True, tag=True):
    """router → supervisor: kill and reap it; the answer is Reaped."""

    worker: int
    reason: str


class WorkDone(Struct, frozen=True, tag=True):
    """router → supervisor: after Drain, every request was answered."""


ToRouter: TypeAlias = Spawned | Reaped | Retire | Switch | Reloaded | Drain | GivenUp
ToSupervisor: TypeAlias = Bound | CannotBind | Alive | WorkerJoined | WorkerWaits | WorkerRetired | WorkerHung | WorkDone
Note: TypeAlias = ToRouter | ToSupervisor
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Note)


def pair() -> tuple[socket.socket, socket.socket]:
    """(supervisor's end, router's end); both non-blocking, neither inherited unless passed on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def say(end: socket.socket, note: Note) -> None:
    """Sends one note. If the other end is gone or does not read, that is seen elsewhere (end of file, pidfd)."""
    with contextlib.suppress(OSError):
        end.send(_encoder.encode(note))


def heard(end: socket.socket) -> Iterator[Note]:
    """Every note that has arrived. Raises EOFError when the other end is gone and all it said was read."""
    while True:
        try:
            packet = end.recv(PACKET_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            raise EOFError from None
        if not packet:
            raise EOFError
        yield _decoder.decode(packet)
