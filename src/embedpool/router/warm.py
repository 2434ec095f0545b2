"""The worker that is awake, where jobs are short. Pure; owned by the core.

Falling asleep and being woken costs more than a model of microseconds computes in that time, and a job of its own costs the
router more than a place in the next one. So what waits and is little is not spread over workers that sleep: it goes behind the
one job that runs, or else waits for the next answer, which is due at once. Jobs of milliseconds are not concerned: each of
them goes to whom it did (roster.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from embedpool.router.cost import CostModel
from embedpool.router.load import Load
from embedpool.router.queue import Queue
from embedpool.router.roster import Roster

SOON_S = 250e-6  # edge.SOON_S, which this module must not import: it knows no socket
LITTLE_MS = SOON_S * 1e3  # as long as a worker stays awake after a short job. With 0.1 ms, 64 workers had no more in a job
HELD_S = 1e-3  # what waits goes to others then: the answer is late, since the machine has more to do than cores, or stopped


@dataclass(slots=True)
class Warm:
    """`number` is the worker that took or ended a short job last, HELD_S before `until`. `held_until` is finite while
    something waits that others could take."""

    roster: Roster
    queue: Queue
    load: Load
    number: int = 0
    until: float = 0.0
    held_until: float = math.inf
    _held_at: float = math.inf

    def seen(self, number: int, job_ms: float, now: float) -> None:
        """It has begun or ended a job of so long."""
        if job_ms < LITTLE_MS:
            self.number, self.until = number, now + HELD_S

    def given(self) -> None:
        """A job has gone out: what waits now has not waited yet."""
        self._held_at = math.inf

    def instead_of(self, number: int, urgent: bool, cost: CostModel, now: float) -> int:
        """Who gets the next job of this class, `number` being the one with the least to do; 0: nobody before `held_until`."""
        line = self.queue.interactive if urgent else self.queue.bulk
        worker = self.roster.workers.get(self.number)
        if now >= self.until or worker is None or not worker.takes_jobs or not line:
            return number
        request = line.first()
        most = max(request.units[request.waiting[-1]], sum([job.units for job in worker.jobs]))
        if cost.ms(most) >= LITTLE_MS:
            return number
        if len(worker.jobs) == self.load.jobs and self.roster.has_room(worker, urgent):
            return self.number  # nobody else has anything to do
        if not self.load.jobs or cost.ms(self.queue.units[urgent]) >= LITTLE_MS:
            return number
        self._held_at = min(self._held_at, now)
        if now >= self._held_at + HELD_S:
            return number
        self.held_until = self._held_at + HELD_S
        return 0
