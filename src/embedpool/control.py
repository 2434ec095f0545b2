"""What supervisor and router say to each other, over a SOCK_SEQPACKET pair that the router inherits.

One JSON object per packet. Both ends are ours, so nothing is validated beyond its shape; the end of file is the sign that
the other is gone. The supervisor thereby needs no ZeroMQ, and nothing that a peer sends can reach it.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TypeAlias, get_args

PACKET_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Spawned:
    """supervisor → router: a worker was started. `worker` is never used twice, `index` is its place in the pool."""

    worker: int
    index: int
    pid: int
    cores: tuple[int, ...]
    restarts: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """supervisor → router: the worker has ended and was waited for: it cannot write any more."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """supervisor → router: refuse new requests, say WorkDone when all open ones are answered."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """supervisor → router: no worker can be started."""

    reason: str


@dataclass(frozen=True, slots=True)
class Bound:
    """router → supervisor: clients can connect."""


@dataclass(frozen=True, slots=True)
class CannotBind:
    """router → supervisor: it ends, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """router → supervisor: the worker takes jobs."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerHung:
    """router → supervisor: kill and reap it; the answer is Reaped."""

    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkDone:
    """router → supervisor: after Drain, every request was answered."""


Note: TypeAlias = Spawned | Reaped | Drain | GivenUp | Bound | CannotBind | WorkerJoined | WorkerHung | WorkDone
_BY_NAME = {cls.__name__: cls for cls in get_args(Note)}


def pair() -> tuple[socket.socket, socket.socket]:
    """(supervisor's end, router's end); both non-blocking, neither inherited unless passed on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def say(end: socket.socket, note: Note) -> None:
    """Sends one note. If the other end is gone or does not read, that is seen elsewhere (end of file, pidfd)."""
    with contextlib.suppress(OSError):
        end.send(json.dumps([type(note).__name__, asdict(note)]).encode())


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
        name, fields = json.loads(packet)
        if name == "Spawned":
            fields["cores"] = tuple(fields["cores"])
        yield _BY_NAME[name](**fields)
