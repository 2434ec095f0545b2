"""The whole schedule in virtual time: the router's core, workers that run what it sends them, and clients that ask.

Real are the core, a worker's turns (worker.turns), its micro-batches (worker.batching) and the rule when a run is interrupted
(worker.inbox). Simulated are the clock, the sockets (LINK_S each way) and the model, whose runs take what the cost model says
of their width. A worker's loop follows worker.main and worker.job, which a change there must be carried to.

To add what a worker or a client may do: a method that is called at its time (`Clock.at`), tells the core of it by `_step`,
and, where it lasts, pauses the worker's thread until the clock resumes it, as `Worker.run` does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from embedpool import protocol as wire
from embedpool.models.encoding import Interrupted
from embedpool.protocol import MAX_BUDGET_MS, Refused, Vectors
from embedpool.router import events as ev
from embedpool.router.core import Core
from embedpool.router.cost import CHARS_PER_TOKEN, ROW_UNITS
from embedpool.worker import turns
from embedpool.worker.batching import micro_batches
from embedpool.worker.inbox import worth_interrupting
from tests.unit.transcript import SEGMENT, core
from tests.unit.virtual import Clock, Thread

UNIT_MS = 0.05
LINK_S = 75e-6  # half of the round trip that load.DEPTH is there for
REAP_S = 0.005  # from a worker's end to the core's knowing of it
CHECK_EVERY = 200  # steps: the check is linear in all that is open


def chars_of(ms: float) -> int:
    """How long a text is that alone takes a worker so long."""
    return round(ms / UNIT_MS) - ROW_UNITS


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the model: of an urgent job or of a bulk one, to its end or interrupted."""

    urgent: bool
    ended: bool
    began_at: float
    until: float


class Worker:
    """The inbox and the encoder of a `Turns`, and the loop around it."""

    def __init__(self, number: int, clock: Clock, answer: Callable[[int, wire.Done], None]) -> None:
        self.number = number
        self.clock = clock
        self.runs: list[Run] = []
        self.begun = 0
        self.turns = turns.Turns(self, self, self._urgent)  # type: ignore[arg-type]
        self._answer = answer
        self._messages: deque[wire.Job] = deque()
        self._thread = Thread(self._live)
        self._current: wire.Job | None = None
        self._urgent_s = 0.0
        self._watched_until: float | None = None
        self._began_at = 0.0
        self._interrupted = False
        self._wake_up = 0  # number of the wake-up that is waited for; others are out of date
        self._resume()

    def receive(self, job: wire.Job) -> None:
        self._messages.append(job)
        if self._current is None:
            self._resume()
        elif job.urgent and self._watched_until is not None:
            now = self.clock.now
            if worth_interrupting(now - self._began_at, self._watched_until - now):
                self._interrupted = True
                self._resume()

    def kill(self) -> None:
        self._wake_up += 1
        self._thread.end()

    # ── worker.main ──

    def _live(self) -> None:
        while True:
            while not self._messages:
                self._thread.pause()
            self._do(self._messages.popleft())

    def _do(self, job: wire.Job) -> None:
        self._current, self.begun = job, job.id
        began, others_s = self.clock.now, self._urgent_s + self.turns.wasted_s
        run = self.run if job.urgent else self.turns.run
        lengths = [len(text) // CHARS_PER_TOKEN for part in job.parts for text in part.texts]
        for batch in micro_batches(lengths):
            run([[0]] * len(batch.rows), batch.width)
        took_s = self.clock.now - began - (self._urgent_s + self.turns.wasted_s - others_s)
        self._current = None
        self._answer(self.number, wire.Done(job.id, took_s * 1e3, tuple(1 for _ in job.parts)))

    def _urgent(self, job: wire.Job) -> None:
        overtaken, began = self._current, self.clock.now
        assert overtaken is not None
        self._do(job)
        self._current, self.begun = overtaken, overtaken.id
        self._urgent_s += self.clock.now - began

    # ── its inbox ──

    def urgent(self) -> wire.Job | None:
        found = next((job for job in self._messages if job.urgent), None)
        if found is not None:
            self._messages.remove(found)
        return found

    @contextmanager
    def watching(self, expected_s: float) -> Iterator[None]:
        self._watched_until = self.clock.now + expected_s
        try:
            yield
        finally:
            self._watched_until = None

    # ── its encoder ──

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Any:
        assert self._current is not None
        self._began_at = self.clock.now
        self._interrupted = False
        self._wake_up += 1
        takes_ms = len(rows) * (width * CHARS_PER_TOKEN + ROW_UNITS) * UNIT_MS
        self.clock.at(self._began_at + takes_ms / 1e3, partial(self._resume_if, self._wake_up))
        self._thread.pause()
        self.runs.append(Run(self._current.urgent, not self._interrupted, self._began_at, self.clock.now))
        if self._interrupted:
            self._wake_up += 1
            raise Interrupted
        return np.zeros((len(rows), 4), np.float32)

    def _resume(self) -> None:
        self._thread.resume()

    def _resume_if(self, mine: int) -> None:
        if mine == self._wake_up:
            self._resume()


@dataclass(slots=True, eq=False)
class Question:
    """One request of a client, and its answer."""

    asked_at: float
    rows: int
    then: Callable[[Question], None]
    ahead: int = 0  # requests of the same client that were open
    answered_at: float = -1.0
    message: Vectors | Refused | None = None

    @property
    def code(self) -> str:
        return self.message.code if isinstance(self.message, Refused) else "vectors" if self.message else "open"

    @property
    def ms(self) -> float:
        assert self.message is not None, "no answer yet"
        return (self.answered_at - self.asked_at) * 1e3


class Pool:
    """A router with workers. It holds in all scenarios, after every step: no worker stands idle while anything waits, and none
    is taken for hung."""

    def __init__(self, workers: int, **rules: Any) -> None:
        self.clock = Clock()
        self.core: Core = core(**rules)
        self.core.cost.unit_ms = UNIT_MS
        self.workers: dict[int, Worker] = {}
        self.gone: list[Worker] = []
        self.sends: list[float] = []  # when each job was given out
        self._questions: dict[tuple[bytes, int], Question] = {}
        self._sessions: set[bytes] = set()
        self._next_id = 0
        self._next_worker = 0
        self._tick_at = -1.0
        self._steps = 0
        for _ in range(workers):
            self.start_worker()

    def start_worker(self) -> None:
        self._next_worker += 1
        self.workers[self._next_worker] = Worker(self._next_worker, self.clock, self._done)
        self._step(ev.Joined(self._next_worker, UNIT_MS))

    def kill_worker(self, number: int, restart_s: float) -> None:
        """The core hears of it REAP_S later; another worker comes `restart_s` after its end."""
        worker = self.workers.pop(number)
        worker.kill()
        self.gone.append(worker)
        self.clock.at(self.clock.now + REAP_S, lambda: self._step(ev.Lost(number, "SIGKILL", worker.begun)))
        self.clock.at(self.clock.now + restart_s, self.start_worker)

    def kill_in_turn(self, every_s: float, restart_s: float) -> None:
        """The oldest worker, again and again."""
        if self.workers:
            self.kill_worker(min(self.workers), restart_s)
        self.clock.at(self.clock.now + every_s, lambda: self.kill_in_turn(every_s, restart_s))

    def ask(
        self, client: str, texts_ms: Sequence[float], then: Callable[[Question], None] = lambda _: None, **fields: Any
    ) -> Question:
        """Now, for texts that alone take a worker so long. `then` is called with the answer."""
        name = client.encode()
        if name not in self._sessions:
            self._sessions.add(name)
            self._step(ev.Opened(name, f"{client}.segment", SEGMENT))
        self._next_id += 1
        texts = tuple(f"{self._next_id}.{row} ".ljust(chars_of(ms), "x") for row, ms in enumerate(texts_ms))
        question = Question(self.clock.now, len(texts), then)
        self._questions[name, self._next_id] = question
        embed = wire.Embed(self._next_id, texts, offset=0, **{"budget_ms": MAX_BUDGET_MS, **fields})
        self._step(ev.Asked(name, embed, sum(map(len, texts)) + 50))
        return question

    def run(self, seconds: float) -> None:
        self.clock.run(self.clock.now + seconds)

    def all_workers(self) -> list[Worker]:
        """Those that were killed too."""
        return [*self.gone, *self.workers.values()]

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()

    def _done(self, worker: int, done: wire.Done) -> None:
        self.clock.at(self.clock.now + LINK_S, lambda: self._step(ev.Finished(worker, done, b"")))

    def _step(self, event: ev.Event) -> None:
        for action in self.core.handle(event, self.clock.now):
            match action:
                case ev.SendJob(number, job):
                    self.sends.append(self.clock.now)
                    self.clock.at(self.clock.now + LINK_S, partial(self._deliver, number, job))
                case ev.Reply(session, message):
                    assert message.id is not None
                    question = self._questions.pop((session, message.id))
                    question.message, question.answered_at = message, self.clock.now
                    self.clock.at(self.clock.now, partial(question.then, question))
                case ev.Kill(_, reason):
                    raise AssertionError(f"a worker that works is taken for hung: {reason}")
        self._steps += 1
        if self._steps % CHECK_EVERY == 0:
            self.core.check()
        assert not idle_while_something_waits(self.core), f"at {self.clock.now}"
        self._arm()

    def _deliver(self, number: int, job: wire.Job) -> None:
        if number in self.workers:
            self.workers[number].receive(job)

    def _arm(self) -> None:
        deadline = self.core.next_deadline()
        if deadline is not None and self._tick_at <= self.clock.now:
            self._tick_at = max(deadline, self.clock.now + 1e-6)
            self.clock.at(self._tick_at, lambda: self._step(ev.Tick()))


def idle_while_something_waits(core: Core) -> bool:
    """All that is read of the core's state."""
    idle = any(not worker.jobs and not worker.killed for worker in core.workers.values())
    return idle and bool(core.queue.requests or core.retries)


# ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    """Asks for the same texts again and again, and keeps what it asked."""

    def __init__(self, pool: Pool, name: str, texts_ms: Sequence[float], **fields: Any) -> None:
        self.pool, self.name, self.texts_ms, self.fields = pool, name, texts_ms, fields
        self.asked: list[Question] = []
        self._open = 0

    def ask(self, then: Callable[[Question], None] = lambda _: None) -> Question:
        def answered(question: Question) -> None:
            self._open -= 1
            then(question)

        question = self.pool.ask(self.name, self.texts_ms, answered, **self.fields)
        question.ahead = self._open
        self._open += 1
        self.asked.append(question)
        return question

    def keep_open(self, requests: int) -> None:
        """So many, from now on: for each that is answered, another."""
        for _ in range(requests):
            self.ask(self._again)

    def _again(self, question: Question) -> None:
        wait_ms = (question.message.retry_after_ms or 1) if isinstance(question.message, Refused) else 0
        self.pool.clock.at(self.pool.clock.now + wait_ms / 1e3, partial(self.ask, self._again))

    def ask_at(self, per_s: float, seconds: float, seed: int | None = None) -> None:
        """So often, whatever is answered: evenly, or at random by the seed."""
        chance = random.Random(seed)
        when = self.pool.clock.now
        end = when + seconds
        while (when := when + (1 / per_s if seed is None else chance.expovariate(per_s))) < end:
            self.pool.clock.at(when, self.ask)

    def served(self) -> list[Question]:
        """The requests that were given vectors."""
        return [question for question in self.asked if question.code == "vectors"]

    def times_ms(self) -> list[float]:
        """Theirs, sorted."""
        return sorted(question.ms for question in self.served())

    def rows(self) -> int:
        """That it was given."""
        return sum(question.rows for question in self.served())

    def codes(self) -> set[str]:
        return {question.code for question in self.asked}
