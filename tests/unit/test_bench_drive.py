"""The loops that ask, on an event loop whose clock jumps: what a stall looks like to them, and who is to blame for waiting."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from embedpool.bench.drive import NO_ANSWER, Sample, Told, closed_loop, open_loop
from embedpool.bench.recording import latency_of, queries_of
from embedpool.bench.workload import schedule
from embedpool.errors import Overloaded, TimedOut

T = TypeVar("T")
BEGIN_AT = 100.0


@dataclass
class Clock:
    now: float = BEGIN_AT - 1


class _Jump(selectors.SelectSelector):
    """Instead of waiting it moves the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, and nobody has a time"
        self._clock.now += max(0.0, timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        super().__init__(_Jump(clock))
        self._now = clock

    def time(self) -> float:
        return self._now.now


def play(clock: Clock, main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(main)


@dataclass
class Server:
    """Serves one request after the other, 1 ms each, and none between `stalls_at` and a second later."""

    clock: Clock
    stalls_at: float = BEGIN_AT + 5.0
    free_at: float = 0.0
    asked: list[int] = field(default_factory=list)

    async def ask(self, i: int) -> Told:
        self.asked.append(i)
        start_at = max(self.clock.now, self.free_at)
        if self.stalls_at <= start_at < self.stalls_at + 1.0:
            start_at = self.stalls_at + 1.0
        self.free_at = start_at + 0.001
        await asyncio.sleep(self.free_at - self.clock.now)
        return Told(1, 10, 0.2, 0.1, 0.7)


def p(samples: list[Sample], percent: str) -> float:
    found = latency_of(samples).percentiles_ms[percent]
    assert found is not None
    return found


def test_a_stall_of_the_server_is_in_the_percentiles_of_an_open_loop() -> None:
    clock = Clock()
    due_s = schedule(100, 10, "fixed", 1)  # a tenth of them is due during the stall
    samples = play(clock, open_loop(due_s, Server(clock).ask, BEGIN_AT))
    assert [sample.due_s for sample in samples] == due_s
    assert p(samples, "p50") < 1.1
    assert 400 < p(samples, "p95") < 700  # half of the stall: 5 % were due in its first half
    assert 800 < p(samples, "p99") <= 1010
    assert 990 < p(samples, "max") <= 1010


def test_a_closed_loop_would_have_hidden_it() -> None:
    """Why queries are not measured that way: one request saw the stall, and nobody counts those that were not asked."""
    clock = Clock()
    samples = play(clock, closed_loop(Server(clock).ask, BEGIN_AT, 10.0))
    assert len(samples) > 8000
    assert p(samples, "p99.9") < 1.1 < 990 < p(samples, "max")


def test_a_load_that_stands_still_itself_is_late_and_its_latencies_say_so() -> None:
    clock = Clock()
    server = Server(clock, stalls_at=BEGIN_AT - 50)

    async def ask(i: int) -> Told:
        if i == 500:
            clock.now += 1.0  # the load's process gets no processor for a second
        return await server.ask(i)

    due_s = schedule(100, 10, "fixed", 1)
    found = queries_of(play(clock, open_loop(due_s, ask, BEGIN_AT)), 0.0, 10.0)
    assert found.late_p99_ms > 800
    assert (found.latency.percentiles_ms["p95"] or 0) > 400
    assert found.stages[0].name == "late" and found.stages[0].p95_ms > 400
    assert found.stages[1].name == "queue" and found.stages[1].p95_ms < 0.3  # the pool has no part in it


def test_requests_are_asked_in_time_however_many_are_open() -> None:
    clock = Clock()

    async def never_soon(_: int) -> Told:
        await asyncio.sleep(60)
        return Told(1, 1, 0, 0, 0)

    samples = play(clock, open_loop(schedule(50, 4, "poisson", 3), never_soon, BEGIN_AT))
    assert max(sample.sent_s - sample.due_s for sample in samples) < 1e-6
    assert all(59.9 < sample.done_s - sample.due_s < 60.1 for sample in samples)


def test_what_failed_is_a_sample_with_its_code() -> None:
    clock = Clock()

    async def ask(i: int) -> Told:
        await asyncio.sleep(0.002)
        if i == 1:
            raise Overloaded("too much", retry_after_ms=10)
        if i == 2:
            raise TimedOut("no answer in time: the pool did not finish the request")
        if i == 3:
            raise TimedOut("it waited longer than its budget")
        return Told(1, 1, 0, 0, 0)

    samples = play(clock, open_loop([0.0, 0.1, 0.2, 0.3], ask, BEGIN_AT))
    assert [sample.outcome for sample in samples] == ["answered", "overloaded", NO_ANSWER, "expired"]
    assert all(0.0019 < sample.done_s - sample.sent_s < 0.0021 for sample in samples)


def test_a_bulk_client_waits_for_its_last_request_and_pauses_after_a_refusal() -> None:
    clock = Clock()

    async def ask(i: int) -> Told:
        await asyncio.sleep(0.4)
        if i == 0:
            raise Overloaded("too much")
        return Told(64, 640, 0, 0, 0)

    samples = play(clock, closed_loop(ask, BEGIN_AT, 1.0))
    assert [(round(s.sent_s, 3), round(s.done_s, 3), s.rows) for s in samples] == [
        (0.0, 0.4, 0),
        (0.5, 0.9, 64),
        (0.9, 1.3, 64),
    ]
