"""What is to be done, by how many, and so how long it takes: the core's view ahead. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from embedpool.protocol import Refused
from embedpool.router.admission import Admission, too_late
from embedpool.router.cost import CostModel
from embedpool.router.queue import Queue
from embedpool.router.retries import Retries
from embedpool.router.state import Job, Request, Worker

# An estimate that is a tenth too low would let in more than can be done, and then nearly all of it comes too late: so only this
# share of the budget is given to waiting.
WAIT_SHARE = 0.8


@dataclass(slots=True)
class Load:
    """`serving`: how many workers take jobs; 1 if there are none, for they will come. `in_hand`: units in workers' hands,
    urgent and not; `jobs`: how many jobs that is."""

    queue: Queue
    retries: Retries
    serving: int = 1
    in_hand: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    jobs: int = 0

    def count(self, workers: Mapping[int, Worker]) -> None:
        self.serving = max(1, sum(worker.takes_jobs for worker in workers.values()))

    def given(self, job: Job) -> None:
        self.in_hand[job.urgent] += job.units
        self.jobs += 1

    def taken_back(self, job: Job) -> None:
        self.in_hand[job.urgent] -= job.units
        self.jobs -= 1

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
        wait_ms = cost.wait_ms(begun + self.queue.units_before(request, rules.slice_ms / cost.unit_ms)) / self.serving
        late_ms = own_ms + wait_ms / WAIT_SHARE - left_ms
        return too_late(request.ask, own_ms, wait_ms, late_ms) if late_ms > 0.0 else None
