"""Histories of the router core: chosen from a seed, played move by move. What becomes of one that fails: minimal.py.

A `Move` is a kind and the draws that decide its details. Playing takes nothing but moves, so that one of them can be left
out and the others stay what they were (shrink.Shrinker). The player is the clients and the workers, and nothing in it reads
the core's state: it judges by events and actions alone, and calls `check` for the core's own invariants.

To add a move: a method of `Player` without arguments, and its weight in WEIGHTS. It takes each decision from `draw`, whose
first option is the simplest (a shrunk move takes that one), returns without an event where it does not apply, and plays
events with `step`. What workers hold is `hands`, what clients wait for is `asks`; keep them true in `_told`, or in the move.
A new kind of action has its rule in `_judge`, an event that should not be printed as its repr a case in `minimal.source`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, repeat
from typing import Any, TypeVar

from msgspec import structs

from embedpool.protocol import Done, Embed, Failure, Part, Refused
from embedpool.protocol import Job as WireJob
from embedpool.router import events as ev
from embedpool.router.core import Core
from embedpool.shm.layout import DTYPES, row_bytes
from tests.unit.transcript import CARD, SEGMENT, ask, joined

STEPS = 36
DRAWS = 16  # the most that one move asks for; any more are the simplest
MOST_WORKERS = 4
ROOM = 512  # bytes of a request's room: more than 12 rows of 9 float32
NAMES = (b"alice", b"bob", b"carol")
SLICES_MS = (8, 3, 30)
QUICK = 1e-4  # milliseconds per unit, of a model whose jobs take microseconds
RULES = {"hang_s": 5, "max_queue_rows": 60, "max_session_requests": 6}
WEIGHTS = {
    "arrive": 7,
    "crowd": 1,
    "finish": 6,
    "join": 3,
    "die": 2,
    "die_again": 2,
    "late_answer": 1,
    "cancel": 2,
    "stall": 1,
    "reap": 1,
    "open": 1,
    "close": 1,
    "retire": 1,
    "switch": 1,
}
CROWD = 6  # small requests one after the other, faster than workers answer: those that wait together share jobs

T = TypeVar("T")
Key = tuple[bytes, int]  # of a request: its session's name and its id
Place = tuple[str, int]  # of a row: its segment's name and where in it


@dataclass(frozen=True, slots=True)
class Move:
    """`kind` is a method of Player; byte i of `draws` takes its i-th decision."""

    kind: str
    draws: bytes = b""

    def simpler(self) -> Iterator[Move]:
        """All details as simple as can be; then each of them, or half of what it is."""
        if self.draws:
            yield Move(self.kind)
        for i, byte in enumerate(self.draws):
            for less in dict.fromkeys((0, byte // 2)) if byte else ():
                yield Move(self.kind, (self.draws[:i] + bytes([less]) + self.draws[i + 1 :]).rstrip(b"\0"))


@dataclass(frozen=True, slots=True)
class History:
    slice_ms: int
    moves: list[Move]


_KINDS, _CUMULATED = list(WEIGHTS), list(accumulate(WEIGHTS.values()))


def choose(seed: int) -> History:
    chance = random.Random(seed)
    slice_ms = chance.choice(SLICES_MS)
    moves: list[Move] = []
    for kind in chance.choices(_KINDS, cum_weights=_CUMULATED, k=STEPS):
        moves += [Move(kind, chance.randbytes(DRAWS)) for _ in range(CROWD if kind == "crowd" else 1)]
    return History(slice_ms, moves)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that its client waits for."""

    embed: Embed
    segment: str

    def places(self) -> list[Place]:
        return places(self.segment, self.embed.offset or 0, self.embed.dim or CARD.dim, self.embed.dtype, self.rows)

    @property
    def rows(self) -> Sequence[int]:
        return range(len(self.embed.texts))


def places(segment: str, offset: int, dim: int, dtype: Any, rows: Sequence[int]) -> list[Place]:
    width = row_bytes(dim, dtype)
    return [(segment, offset + row * width) for row in rows]


def places_of(job: WireJob) -> list[Place]:
    """Where a job writes; nothing for rows that are returned inline."""
    return [
        place
        for part in job.parts
        if part.segment
        for place in places(part.segment, part.offset, part.dim, part.dtype, part.rows)
    ]


def vector(text: str, width: int) -> bytes:
    """What the workers of these histories make of a text: equal texts have equal rows, and none is like untouched memory."""
    return bytes([zlib.crc32(text.encode()) % 255 + 1]) * width


@dataclass(slots=True)
class Player:
    """Plays moves. Knows what a client would know and so what answers are due, and what workers have in hand."""

    core: Core
    now_ms: int = 0
    log: list[tuple[ev.Event, float]] = field(default_factory=list)
    actions: list[list[ev.Action]] = field(default_factory=list)  # what followed from each event of the log but a failing one
    sessions: dict[bytes, str] = field(default_factory=lambda: {name: f"{name.decode()}.segment" for name in NAMES[:2]})
    asks: dict[Key, Ask] = field(default_factory=dict)
    hands: dict[int, list[WireJob]] = field(default_factory=dict)  # by worker, what it runs first
    killed: set[int] = field(default_factory=set)
    writing: dict[Place, int] = field(default_factory=dict)  # by which worker
    memory: dict[Place, str] = field(default_factory=dict)  # the text whose vector is there
    suspects: set[str] = field(default_factory=set)  # texts that a worker had in its hands when it died
    late: list[ev.Finished] = field(default_factory=list)
    retiring: set[int] = field(default_factory=set)
    models: int = 0  # how many others were served before this one
    next_worker: int = 1
    next_id: int = 1
    opened: int = 0
    _draws: Iterator[int] = field(default_factory=lambda: repeat(0))
    _pause_ms: int = 0

    def play(self, moves: Sequence[Move]) -> None:
        for move in moves:
            self.move(move)
        self.end()

    def move(self, move: Move) -> None:
        self._draws = chain(move.draws, repeat(0))
        self._pause_ms = self.draw((0, 1, 50, 500))
        getattr(self, move.kind)()

    def draw(self, options: Sequence[T]) -> T:
        """One of them, as the move's next draw says; the first if it has none left."""
        return options[next(self._draws) % len(options)]

    def step(self, event: ev.Event) -> None:
        self.now_ms += self._pause_ms
        now = self.now_ms / 1e3
        self.log.append((event, now))
        self._told(event)
        actions = self.core.handle(event, now)
        self.actions.append(actions)
        for action in actions:
            self._judge(action)
        self.core.check()

    def end(self) -> None:
        """Workers answer, and others come if none does, until every request has had its answer; fails if nothing helps."""
        remedies = iter(("join", "stall", "stall"))
        for n in range(600):
            before = len(self.log)
            if self.hands.keys() <= self.retiring:
                self.move(Move("join"))
            for kind in ("reap", "finish"):
                self.move(Move(kind, bytes([1, n % 256])))
            if not self.asks:
                return
            if len(self.log) == before:
                remedy = "join" if not self.hands else next(remedies, "")
                assert remedy, f"never answered: {list(self.asks)}"
                self.move(Move(remedy))
        raise AssertionError(f"not answered in a long time: {list(self.asks)}")

    # ── what may happen ──

    def arrive(self, longest: int = 200) -> None:
        name = self.draw(NAMES)
        if name not in self.sessions:
            return
        id = self.next_id - 1 if self.draw(range(20)) == 19 and self.next_id > 1 else self.next_id
        self.next_id = max(self.next_id, id + 1)
        if (name, id) in self.asks:
            self.step(ask(id, session=name))  # the same request, sent again
            return
        rows = self.draw((1, 1, 1, 2, 5, 12, 0))
        equal = self.draw(range(6)) == 5
        first, more = self.draw(range(longest)), self.draw(range(longest))
        texts = [f"{'same' if equal else f'{id}.{row}'} {'x' * ((first + row * more) % longest)}" for row in range(rows)]
        fields: dict[str, Any] = {
            "offset": self.draw((ROOM * id, None, ROOM * id, None, ROOM * id, SEGMENT)),
            "priority": self.draw(("auto", "bulk", "interactive")),
            "budget_ms": self.draw((30_000.0, 200.0, 5.0)),
            "dim": self.draw((0, 2, 0, 2, 9)),
            "dtype": self.draw(DTYPES),
        }
        if texts and self.draw(range(3)) == 2:
            fields |= {"prompt_name": "document", "titles": tuple(f"title of {text}" for text in texts)}
        self.step(ask(id, texts, session=name, **fields))

    def crowd(self) -> None:
        self.arrive(longest=12)

    def open(self) -> None:
        name = self.draw(NAMES)
        self.opened += 1
        self.step(ev.Opened(name, f"{name.decode()}{self.opened}.segment", SEGMENT))

    def close(self) -> None:
        name = self.draw(NAMES)
        if name in self.sessions:
            self.step(ev.Closed(name))

    def cancel(self) -> None:
        """Of a request that is open, or of one that may be."""
        guess = self.draw(NAMES), max(self.next_id - self.draw(range(16)), 1)
        name, id = self.draw((guess, *self.asks))
        self.step(ev.CancelAsked(name, id))

    def join(self) -> None:
        if len(self.hands.keys() - self.retiring) < MOST_WORKERS:
            self.step(joined(self.next_worker, self.draw((0.1, QUICK))))
            self.next_worker += 1

    def finish(self) -> None:
        busy = [worker for worker, jobs in self.hands.items() if jobs]
        if busy:
            answer = self._answer(self.draw(busy))
            if self.draw(range(10)) == 9:
                self.late.append(answer)
            self.step(answer)

    def _answer(self, worker: int) -> ev.Finished:
        job = self.hands[worker][0]
        run_ms = self.draw((5.0, 0.1, 500.0, 0.001))
        failures: list[Failure] = []
        if self.draw(range(16)) == 15:
            number = self.draw(range(len(job.parts)))
            failures = [Failure(number, self.draw(job.parts[number].rows), "too_long", "too long")]
        payload = b"".join(
            vector(text, row_bytes(part.dim, part.dtype)) for part in job.parts if not part.segment for text in part.texts
        )
        return ev.Finished(worker, Done(job.id, run_ms, tuple(3 for _ in job.parts), tuple(failures)), payload)

    def die(self) -> None:
        if self.hands and not self.draw(range(2)):
            worker = self.draw(list(self.hands))
            jobs = self.hands[worker]
            if jobs and self.draw(range(3)) == 2:
                self.late.append(self._answer(worker))
            self.step(ev.Lost(worker, "SIGKILL", self.draw((jobs[0].id, 0)) if jobs else 0))

    def die_again(self) -> None:
        """Another death with a text in hand that has seen one: how a poison row looks."""
        for worker, jobs in self.hands.items():
            if jobs and any(text in self.suspects for part in jobs[0].parts for text in part.texts):
                self.step(ev.Lost(worker, "SIGSEGV", jobs[0].id))
                return

    def late_answer(self) -> None:
        if self.late:
            self.step(self.draw(self.late))

    def stall(self) -> None:
        self._pause_ms += self.draw((200, 6000))
        self.step(ev.Tick())

    def reap(self) -> None:
        for worker in sorted(self.killed):
            self.step(ev.Lost(worker, "hung"))

    def retire(self) -> None:
        if self.hands:
            self.step(ev.RetireAsked(self.draw(list(self.hands))))

    def switch(self) -> None:
        """To another model now and then; else to other rules for the same one."""
        if self.draw(range(3)) == 2:
            self.models += 1
        card = structs.replace(CARD, fingerprint=f"{CARD.fingerprint} {self.models}") if self.models else CARD
        self.step(ev.Switched(card, self.core.rules, self.draw((False, True))))

    # ── what follows from events, as far as clients and workers know ──

    def _told(self, event: ev.Event) -> None:
        match event:
            case ev.Asked(session, embed) if session in self.sessions:
                self.asks.setdefault((session, embed.id), Ask(embed, self.sessions[session]))
            case ev.Finished(worker, done):
                job = next((job for job in self.hands.get(worker, ()) if job.id == done.id), None)
                if job is not None:
                    self.hands[worker].remove(job)
                    self._written(job, done)
            case ev.Joined(worker):
                self.hands[worker] = []
            case ev.Lost(worker, _, begun):
                self._reaped(worker, begun)
            case ev.Opened(session, segment):
                self._forget(session)
                self.sessions[session] = segment
            case ev.Closed(session):
                self._forget(session)
                self.sessions.pop(session, None)
            case ev.RetireAsked(worker):
                self.retiring.add(worker)
            case ev.Switched(model) if model != self.core.model:
                self.retiring |= self.hands.keys()
                self.asks.clear()
                self.sessions.clear()

    def _written(self, job: WireJob, done: Done) -> None:
        failed = {(failure.part, failure.row) for failure in done.failures}
        for number, part in enumerate(job.parts):
            if part.segment:
                found = places(part.segment, part.offset, part.dim, part.dtype, part.rows)
                for place, row, text in zip(found, part.rows, part.texts, strict=True):
                    del self.writing[place]
                    if (number, row) not in failed:
                        self.memory[place] = text

    def _reaped(self, worker: int, begun: int) -> None:
        for job in self.hands.pop(worker, ()):
            for place in places_of(job):
                del self.writing[place]
            if job.id == begun:
                self.suspects.update(text for part in job.parts for text in part.texts)
        self.killed.discard(worker)

    def _forget(self, session: bytes) -> None:
        """Whatever is open ends with its session, without an answer."""
        for key in [key for key in self.asks if key[0] == session]:
            del self.asks[key]

    # ── what the core may do ──

    def _judge(self, action: ev.Action) -> None:
        match action:
            case ev.Reply():
                self._judge_reply(action)
            case ev.SendJob(worker, job):
                assert worker in self.hands, "a job for a worker that is gone"
                assert worker not in self.killed, "a job for a worker that is being killed"
                assert worker not in self.retiring, "a job for a worker that has to go"
                for part in job.parts:
                    self._judge_part(part)
                for place in places_of(job):
                    assert place not in self.writing, "a place is written by two workers"
                    self.writing[place] = worker
                jobs = self.hands[worker]
                jobs.insert(sum(other.urgent for other in jobs) if job.urgent else len(jobs), job)
            case ev.Retired(worker):
                assert worker in self.retiring and not self.hands[worker], "a worker is let go that has something to do"
            case ev.Kill(worker):
                assert worker in self.hands and worker not in self.killed, "a worker is killed that is gone"
                self.killed.add(worker)

    def _judge_part(self, part: Part) -> None:
        assert part.rows
        assert len(part.rows) == len(part.texts) == len(set(part.rows))
        assert part.titles in ((), tuple(f"title of {text}" for text in part.texts))
        assert bool(part.titles) is (part.prompt_name == "document")
        assert not part.segment or part.segment in self.sessions.values(), "a write into a segment that is gone"

    def _judge_reply(self, reply: ev.Reply) -> None:
        message = reply.message
        assert message.id is not None
        asked = self.asks.pop((reply.session, message.id), None)
        assert asked is not None, f"answered more often than asked: {message}"
        inline = asked.embed.offset is None
        assert inline or self.writing.keys().isdisjoint(asked.places()), "answered while its room is being written"
        if isinstance(message, Refused):
            assert not reply.payload
            return
        texts = asked.embed.texts
        assert (message.rows, message.inline) == (len(texts), inline)
        assert message.fingerprint == self.core.model.fingerprint, "vectors of another model"
        if inline:
            width = row_bytes(message.dim, asked.embed.dtype)
            assert bytes(reply.payload) == b"".join(vector(text, width) for text in texts), "a row went astray"
        else:
            assert [self.memory.get(place) for place in asked.places()] == list(texts), "answered with rows not written"
