"""Plays a history through the router core: rows of (event, time, what must follow)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedpool.protocol import Done, Embed, Failure, ModelCard, Refused, Vectors
from embedpool.router.admission import Admission
from embedpool.router.core import Core
from embedpool.router.events import Asked, Event, Finished, Joined, Lost, Opened, Reply, SendJob

CARD = ModelCard("model", 4, 512, "fingerprint", ("query", "document"), titled=("document",))
ALICE, BOB = b"alice", b"bob"
SEGMENT = 1 << 20


def core(card: ModelCard = CARD, kind: type[Core] = Core, **rules: Any) -> Core:
    """A core with one session each for Alice and Bob; a text of n characters is estimated at (n + 24) / 10 ms."""
    made = kind(card, Admission(**rules))
    made.cost.unit_ms = 0.1
    for name in (ALICE, BOB):
        assert made.handle(Opened(name, f"{name.decode()}.segment", SEGMENT), 0.0) == []
    return made


def joined(worker: int, unit_ms: float = 0.1) -> Joined:
    return Joined(worker, unit_ms)


def ask(id: int = 1, texts: Sequence[str] | None = None, session: bytes = ALICE, **fields: Any) -> Asked:
    """Without `texts`, one text of four characters that nobody else asks for."""
    if texts is None:
        texts = [f"{session.decode()[0]}{id:03}"]
    message = Embed(id, tuple(texts), **{"offset": 0, **fields})
    return Asked(session, message, sum(map(len, texts)) + 50)


def words(count: int, chars: int, name: str = "") -> list[str]:
    """So many texts of that length, each one different, and different for each name."""
    return [f"{name}{i}".ljust(chars, "x") for i in range(count)]


def sent(actions: Sequence[object]) -> list[tuple[int, list[tuple[int, ...]]]]:
    """The jobs among actions as (worker, rows of each part)."""
    return [(a.worker, [part.rows for part in a.job.parts]) for a in actions if isinstance(a, SendJob)]


def replies(actions: Sequence[object]) -> list[tuple[bytes, int | None, str]]:
    """The answers among actions as (session, request, "vectors" or the refusal's code)."""
    found = []
    for action in actions:
        if isinstance(action, Reply):
            message = action.message
            assert isinstance(message, Vectors | Refused)
            found.append((action.session, message.id, message.code if isinstance(message, Refused) else "vectors"))
    return found


def finish(made: Core, worker: int, failures: Sequence[Failure] = ()) -> Finished:
    """The answer of a worker to the job that it is running, after just the time that was estimated."""
    job = made.workers[worker].jobs[0]
    ms = made.cost.ms(job.units)
    return Finished(worker, Done(job.id, ms, tuple(1 for _ in job.slices), tuple(failures)), b"")


def lost(made: Core, worker: int, reason: str = "SIGKILL") -> Lost:
    """The end of a worker that was running what it has in hand."""
    jobs = made.workers[worker].jobs
    return Lost(worker, reason, jobs[0].id if jobs else 0)


def play(made: Core, event: Event, now: float) -> list[object]:
    """One step, with every invariant checked after it."""
    actions = made.handle(event, now)
    made.check()
    return list(actions)
