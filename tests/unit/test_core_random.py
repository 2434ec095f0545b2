"""Random histories of the router core: arrivals, deaths, stalls, cancels, late answers, duplicates. Every invariant holds
after every step, and at the end every request has had exactly one answer.

A history is drawn from a seed, so that a failure prints the seed and the last steps. EMBEDPOOL_HISTORIES sets how many.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import pytest

from embedpool.protocol import Done, Failure, Refused, Vectors
from embedpool.router import events as ev
from embedpool.router.core import Core
from embedpool.shm.layout import DTYPES, row_bytes
from tests.unit.transcript import CARD, SEGMENT, ask, core, joined

HISTORIES = int(os.environ.get("EMBEDPOOL_HISTORIES", "10000"))
STEPS = 40
NAMES = (b"alice", b"bob", b"carol")
BATCHES = 10


def inline_row(request: int | None, row: int, width: int) -> bytes:
    """What a worker of these histories writes: a row says whose it is."""
    assert request is not None
    return bytes([(request * 17 + row) % 256]) * width


class History:
    """One random run. Knows what a client would know, and so what answers are due."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.core: Core = core(slice_ms=self.random.choice((3, 8, 30)), hang_s=5, max_queue_rows=60, max_session_requests=6)
        self.now = 0.0
        self.next_worker = 1
        self.next_id = 1
        self.sessions: dict[bytes, int] = {b"alice": 0, b"bob": 0, b"carol": -1}  # name -> generation
        self.due: Counter[tuple[bytes, int, int]] = Counter()  # (name, generation, id) that must be answered once
        self.answered: Counter[tuple[bytes, int, int]] = Counter()
        self.rows_done: dict[tuple[bytes, int, int], set[int]] = {}  # by the answer of the worker that had them
        self.widths: dict[tuple[bytes, int, int], int] = {}  # bytes of one row of the answer
        self.late: list[ev.Finished] = []
        self.killed: set[int] = set()
        self.log: list[str] = []

    def step(self, event: ev.Event) -> None:
        self.now += self.random.choice((0.0, 0.001, 0.05, 0.5))
        self.log.append(f"{self.now:.3f} {event!r}"[:200])
        for action in self.core.handle(event, self.now):
            self.log.append(f"    {action!r}"[:200])
            self._check_action(action)
        self.core.check()

    def _check_action(self, action: ev.Action) -> None:
        if isinstance(action, ev.Reply):
            assert isinstance(action.message, Vectors | Refused)
            assert action.message.id is not None
            key = (action.session, self.sessions[action.session], action.message.id)
            self.answered[key] += 1
            assert self.answered[key] <= self.due[key], f"answered more often than asked: {key}"
            done = self.rows_done.pop(key, set())
            if isinstance(action.message, Vectors):
                assert len(done) == action.message.rows, f"answered with rows that no worker has written: {key}"
            self._check_payload(action, self.widths.get(key, 0))
        elif isinstance(action, ev.SendJob):
            assert action.worker in self.core.workers, "a job for a worker that is gone"
            assert action.worker not in self.killed, "a job for a worker that is being killed"
            for part in action.job.parts:
                assert part.rows
                assert len(part.rows) == len(part.texts) == len(set(part.rows))
                assert part.titles in ((), tuple(f"title {row}" for row in part.rows))
                assert bool(part.titles) is (part.prompt_name == "document")
                if part.segment:
                    name, _, generation = part.segment.removesuffix(".segment").partition("#")
                    assert self.sessions.get(name.encode()) == int(generation or 0), "a write into a segment that is gone"
        elif isinstance(action, ev.Kill):
            self.killed.add(action.worker)

    def _check_payload(self, reply: ev.Reply, width: int) -> None:
        """That every inline row is at its place, in the width of its type."""
        message = reply.message
        rows = message.rows if isinstance(message, Vectors) and message.inline else 0
        assert bytes(reply.payload) == b"".join(inline_row(message.id, row, width) for row in range(rows)), "a row went astray"

    # ── what may happen ──

    def crowd(self) -> None:
        """Small requests faster than workers answer: those that wait together share jobs."""
        for _ in range(6):
            self.arrive(longest=12)

    def arrive(self, longest: int = 200) -> None:
        name = self.random.choice(NAMES)
        if name not in self.core.sessions:
            return
        repeat = self.random.random() < 0.05 and self.next_id > 1
        id = self.next_id - 1 if repeat else self.next_id
        self.next_id = max(self.next_id, id + 1)
        session = self.core.sessions[name]
        if id in session.open:
            self.step(ask(id, session=name))
            return
        texts = ["x" * self.random.randrange(longest) for _ in range(self.random.choice((0, 1, 1, 1, 2, 5, 12)))]
        self.due[name, self.sessions[name], id] += 1
        fields: dict[str, Any] = {
            "offset": self.random.choice((0, 64, None, SEGMENT)),
            "priority": self.random.choice(("auto", "bulk", "interactive")),
            "budget_ms": self.random.choice((5.0, 200.0, 30_000.0)),
            "dim": self.random.choice((0, 2, 9)),
            "dtype": self.random.choice(DTYPES),
        }
        if texts and self.random.random() < 0.3:
            fields |= {"prompt_name": "document", "titles": tuple(f"title {row}" for row in range(len(texts)))}
        self.widths[name, self.sessions[name], id] = row_bytes(fields["dim"] or CARD.dim, fields["dtype"])
        self.step(ask(id, texts, session=name, **fields))

    def open(self) -> None:
        name = self.random.choice(NAMES)
        self._forgive(name)
        self.sessions[name] += 1
        self.step(ev.Opened(name, f"{name.decode()}#{self.sessions[name]}.segment", SEGMENT))

    def close(self) -> None:
        name = self.random.choice(NAMES)
        if name in self.core.sessions:
            self.step(ev.Closed(name))
            self._forgive(name)

    def _forgive(self, name: bytes) -> None:
        """Whatever is open dies with the session; its generation never comes back."""
        for key in [key for key in self.due if key[:2] == (name, self.sessions[name])]:
            self.due[key] = self.answered[key]

    def cancel(self) -> None:
        self.step(ev.CancelAsked(self.random.choice(NAMES), self.random.randrange(1, self.next_id + 1)))

    def join(self) -> None:
        if len(self.core.workers) < 4:
            self.step(joined(self.next_worker))
            self.next_worker += 1

    def finish(self) -> None:
        busy = [n for n, w in self.core.workers.items() if w.jobs]
        if busy:
            worker = self.random.choice(busy)
            answer = self._answer(worker)
            if self.random.random() < 0.1:
                self.late.append(answer)
            for piece in self.core.workers[worker].jobs[0].slices:
                session = piece.request.session
                if not session.closed:
                    key = (session.key, self.sessions[session.key], piece.request.ask.id)
                    self.rows_done.setdefault(key, set()).update(piece.rows)
            self.step(answer)

    def _answer(self, worker: int) -> ev.Finished:
        job = self.core.workers[worker].jobs[0]
        failures = []
        payload = b""
        for i, piece in enumerate(job.slices):
            if piece.request.inline is not None:
                width = row_bytes(piece.request.dim, piece.request.ask.dtype)
                payload += b"".join(inline_row(piece.request.ask.id, row, width) for row in piece.rows)
            if self.random.random() < 0.05:
                failures.append(Failure(i, piece.rows[0], "too_long", "too long"))
        done = Done(job.id, self.random.choice((0.1, 5.0, 500.0)), tuple(3 for _ in job.slices), tuple(failures))
        return ev.Finished(worker, done, payload)

    def die(self) -> None:
        if self.core.workers and self.random.random() < 0.5:
            worker = self.random.choice(list(self.core.workers))
            if self.core.workers[worker].jobs and self.random.random() < 0.3:
                self.late.append(self._answer(worker))
            begun = self.core.workers[worker].jobs[0].id if self.core.workers[worker].jobs else 0
            self.step(ev.Lost(worker, "SIGKILL", self.random.choice((begun, 0))))

    def die_again(self) -> None:
        """Another death with a job in hand that has seen one: how a poison row looks."""
        suspects = [n for n, w in self.core.workers.items() if w.jobs and w.jobs[0].deaths]
        if suspects:
            self.step(ev.Lost(suspects[0], "SIGSEGV", self.core.workers[suspects[0]].jobs[0].id))

    def late_answer(self) -> None:
        if self.late:
            self.step(self.random.choice(self.late))

    def stall(self) -> None:
        self.now += self.random.choice((0.2, 6.0))
        self.step(ev.Tick())

    def reap(self) -> None:
        for worker in list(self.killed & set(self.core.workers)):
            self.step(ev.Lost(worker, "hung"))

    def run(self) -> None:
        moves = [self.arrive] * 7 + [self.crowd] + [self.finish] * 6 + [self.join] * 3
        moves += [
            self.die,
            self.die,
            self.die_again,
            self.die_again,
            self.late_answer,
            self.cancel,
            self.cancel,
            self.stall,
            self.reap,
            self.open,
            self.close,
        ]
        for _ in range(STEPS):
            self.random.choice(moves)()
        self._end()

    def _end(self) -> None:
        """Workers come and answer until nothing is open: then every request must have had its answer."""
        for _ in range(600):
            self.reap()
            self.join()
            if not any(session.open for session in self.core.sessions.values()) and not self.core.queue:
                break
            self.finish()
        assert not any(session.open for session in self.core.sessions.values()), "a request never got its answer"
        for key, times in self.due.items():
            if key[1] == self.sessions[key[0]]:
                assert self.answered[key] == times, f"{key} was asked {times} times, answered {self.answered[key]}"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_invariant_holds_after_every_step_of_random_histories(batch: int) -> None:
    assert CARD.dim == 4
    for seed in range(batch * HISTORIES // BATCHES, (batch + 1) * HISTORIES // BATCHES):
        history = History(seed)
        try:
            history.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(history.log[-30:])) from error
