"""What is to be done, by how many, and so how long it takes: the core's view ahead. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from embedpool.protocol import Refused
from embedpool.router.admission import Admission, too_late
from embedpool.router.cost import CostModel
from embedpool.router.queue import Queue
from embedpool.router.retries import Retries
from embedpool.router.state import Job, Request, Session, Worker

# An estimate that is a tenth too low would let in more than can be done, and then nearly all of it comes too late: so only this
# share of the budget is given to waiting.
WAIT_SHARE = 0.8
LONGER = 8  # times slice_ms, at most, for the jobs of bulk work that is alone
QUIET_S = 10.0  # it is, if for so long nobody has asked for interactive work, or for bulk work beside another
DEPTH = 2  # of each class: one job running, one ahead, so that a worker never waits for the router's round trip (150 us)


@dataclass(slots=True)
class Load:
    """`serving`: how many workers take jobs; 1 if there are none, for they will come. `in_hand`: units in workers' hands,
    urgent and not. `disturbed_at`: when somebody last asked for work that must not wait for long jobs."""

    queue: Queue
    retries: Retries
    serving: int = 1
    in_hand: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    disturbed_at: float = -math.inf
    _last_bulk: Session | None = None

    def count(self, workers: Mapping[int, Worker]) -> None:
        self.serving = max(1, sum(worker.takes_jobs for worker in workers.values()))

    def given(self, job: Job) -> None:
        self.in_hand[job.urgent] += job.units

    def taken_back(self, job: Job) -> None:
        self.in_hand[job.urgent] -= job.units

    def asked(self, session: Session, interactive: bool, now: float) -> None:
        """Somebody asks for work."""
        last = self._last_bulk
        if interactive or (last is not None and last is not session and last.open and not last.closed):
            self.disturbed_at = now
        if not interactive:
            self._last_bulk = session

    def slice_ms(self, urgent: bool, cost: CostModel, rules: Admission, now: float) -> float:
        """How much work the next job may be. Bulk work that is alone goes in longer jobs, whose rows are more alike and run in
        fuller batches; shorter ones towards its end, for the workers to end together."""
        if urgent or now - self.disturbed_at < QUIET_S:
            return rules.slice_ms
        share_ms = cost.ms(self.queue.units[False]) / (DEPTH * self.serving)
        return max(rules.slice_ms, min(share_ms, LONGER * rules.slice_ms))

    def backlog_ms(self, cost: CostModel) -> float:
        """Estimated time until a job given out now would start, if it had to wait for all others."""
        units = sum(self.queue.units.values()) + sum(self.in_hand.values()) + self.retries.units()
        return cost.wait_ms(units) / self.serving

    def too_late(self, request: Request, cost: CostModel, rules: Admission, now: float) -> Refused | None:
        """Why a new request cannot be answered in time, or None. Interactive work overtakes what is bulk, and sessions take
        turns."""
        urgent, units = request.interactive, request.units
        own_ms = cost.ms(units[0] if len(units) == 1 else max(max(units), sum(units) / self.serving))
        left_ms = (request.deadline_at - now) * 1e3
        begun = self.retries.units(urgent_only=urgent) + self.in_hand[True] + (0 if urgent else self.in_hand[False])

        every = self.queue.units[True] + (0 if urgent else self.queue.units[False])
        wait_ms = cost.wait_ms(begun + every) / self.serving
        if own_ms + wait_ms / WAIT_SHARE <= left_ms:
            return None  # even behind all that waits: the usual case, and this is cheap to know
        turn = self.slice_ms(urgent, cost, rules, now) / cost.unit_ms
        wait_ms = cost.wait_ms(begun + self.queue.units_before(request, turn)) / self.serving
        late_ms = own_ms + wait_ms / WAIT_SHARE - left_ms
        return too_late(request.ask, own_ms, wait_ms, late_ms) if late_ms > 0.0 else None


def least_busy(workers: Mapping[int, Worker], urgent: bool) -> int:
    """The worker with room for such a job that has the least to do before it, then at all, and then that which was given one
    the longest time ago: what it runs gives way to queries only so often. 0 for none."""
    best, least = 0, (math.inf, math.inf, math.inf)
    for number, worker in workers.items():  # once or twice per job: with 64 workers this was a third of the router's time
        if worker.killed or worker.retiring:
            continue
        alike = of_queries = every = 0
        for job in worker.jobs:
            every += job.units
            if job.urgent:
                of_queries += job.units
            if job.urgent == urgent:
                alike += 1
        if alike < DEPTH:
            found = (of_queries if urgent else every, every, worker.given)
            if found < least:
                best, least = number, found
    return best
