"""What the router core is told, and what it asks for: frozen values. server.Server makes the events and does the actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from embedpool import protocol as wire
from embedpool.protocol import Done, Embed, ModelCard, Refused, Vectors
from embedpool.router.admission import Admission

# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Opened:
    """A session begins. `segment` is "" for a session without shared memory."""

    session: bytes
    segment: str
    segment_bytes: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The session's client said bye, or is gone."""

    session: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    session: bytes
    ask: Embed
    nbytes: int


@dataclass(frozen=True, slots=True)
class CancelAsked:
    session: bytes
    id: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker can take jobs; `worker` is a number never used before in this pool, `index` its place in it."""

    worker: int
    unit_ms: float
    index: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker was reaped: it will never write again. `begun` is the last job that it began, 0 for none."""

    worker: int
    reason: str
    begun: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker's `done`, with the inline rows behind it."""

    worker: int
    done: Done
    payload: bytes


@dataclass(frozen=True, slots=True)
class RetireAsked:
    """This worker gets no more jobs; say Retired when it has none."""

    worker: int


@dataclass(frozen=True, slots=True)
class Switched:
    """From now on the pool serves this model, under these rules. Sessions that were told of another model are over: their
    clients say hello again, and ask again what they still want. `relearn`: what work costs is to be learned anew."""

    model: ModelCard
    rules: Admission
    relearn: bool


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """Take no new requests; say Drained when all are answered."""


@dataclass(frozen=True, slots=True)
class Failed:
    """No worker can be started any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """The time named by `next_deadline` has come."""


Event: TypeAlias = (
    Opened | Closed | Asked | CancelAsked | Joined | Lost | Finished | RetireAsked | Switched | DrainAsked | Failed | Tick
)

# ── actions ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SendJob:
    worker: int
    job: wire.Job


@dataclass(frozen=True, slots=True)
class Reply:
    session: bytes
    message: Vectors | Refused
    payload: bytes | bytearray = b""


@dataclass(frozen=True, slots=True)
class Kill:
    worker: int
    reason: str


@dataclass(frozen=True, slots=True)
class Retired:
    """After RetireAsked: the worker has nothing to do, and may be ended."""

    worker: int


@dataclass(frozen=True, slots=True)
class Drained:
    """Every request was answered after DrainAsked."""


Action: TypeAlias = SendJob | Reply | Kill | Retired | Drained
