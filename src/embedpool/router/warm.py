"""The worker that is awake, where jobs are short. Pure; owned by the core.

Falling asleep and being woken costs more than a model of microseconds computes in that time, and a job of its own costs the
router more than a place in the next one. So what waits and is little goes to the worker that took or ended a short job last;
if that one has no room, it waits for it, as long as its answer is due at once and no more than a wake-up's worth is waiting.
Jobs of milliseconds are not concerned: each goes to whom it did (roster.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from embedpool.router.cost import CostModel
from embedpool.router.queue import Queue
from embedpool.router.roster import Roster

SOON_S = 250e-6  # edge.SOON_S, which this module must not import: it knows no socket
WAKE_MS = 0.1  # being woken takes 50 to 100 us on a virtual machine, and what runs then has cold caches


@dataclass(slots=True)
class Warm:
    """`number` is the worker's; it stays awake until `until`. `due_at`: when its answer is late. `held_until` is finite while
    something waits that others could take: they get it then."""

    roster: Roster
    queue: Queue
    number: int = 0
    until: float = 0.0
    due_at: float = 0.0
    held_until: float = math.inf

    def began(self, number: int, now: float) -> None:
        """It has a job that will take less than SOON_S."""
        self.number, self.due_at = number, now + SOON_S
        self.until = self.due_at

    def ended(self, number: int, run_ms: float, now: float) -> None:
        """It has answered a job that took so long."""
        if run_ms < SOON_S * 1e3:
            self.number, self.until = number, now + SOON_S

    def instead_of(self, number: int, urgent: bool, cost: CostModel, now: float) -> int:
        """Who gets the next job of this class, where the one with the least to do is `number`; 0: nobody before `held_until`."""
        line = self.queue.interactive if urgent else self.queue.bulk
        worker = self.roster.workers.get(self.number)
        if number == self.number or now >= self.until or worker is None or not worker.takes_jobs or not line:
            return number
        request = line.first()
        least = max(request.units[request.waiting[-1]], sum([job.units for job in worker.jobs]))
        if cost.ms(least) >= WAKE_MS:
            return number
        if self.roster.has_room(worker, urgent):
            return self.number
        if now >= self.due_at or cost.ms(self.queue.units[urgent]) >= WAKE_MS:
            return number
        self.held_until = self.due_at
        return 0
