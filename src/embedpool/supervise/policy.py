"""When a child that ended is started again, and when the pool gives up. Pure: `now` is an argument.

The first restart is at once, so that one crash costs no more than a start. A child that ends within SERVED_S of being ready, or
before, again and again, waits longer each time, up to LONGEST_WAIT_S, or LONGEST_ALONE_S where no other one serves meanwhile.
One that has served for SERVED_S is started again at once, however often that happens: a start costs 0.05 to 0.4 s of one core
(bench/results/models.json), which is then less than what the child does; and a pool that waits has its clients wait.
START_TRIES in a row that never got ready are given up: the model cannot be loaded (any more), and trying for ever would hide
that.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_WAIT_S = 0.1
LONGEST_WAIT_S, LONGEST_ALONE_S = 10.0, 1.0
SERVED_S = 1.0
START_TRIES = 3


@dataclass(slots=True)
class Restarts:
    """One child's record."""

    tries_without_ready: int = 0
    ends_in_a_row: int = 0
    total: int = 0
    ready_at: float | None = None

    def ready(self, now: float) -> None:
        self.ready_at = now
        self.tries_without_ready = 0

    def ended(self, now: float, *, alone: bool = False) -> float | None:
        """Seconds until the next start, or None: give up. `alone`: nobody else does meanwhile what the child did."""
        if self.ready_at is None:
            self.tries_without_ready += 1
        elif now - self.ready_at >= SERVED_S:
            self.ends_in_a_row = 0
        self.ready_at = None
        self.total += 1
        self.ends_in_a_row += 1
        if self.tries_without_ready >= START_TRIES:
            return None
        if self.ends_in_a_row == 1:
            return 0.0
        doublings = min(self.ends_in_a_row - 2, 20)  # bounded: 2.0 ** 1024 is an OverflowError, after some hours of restarts
        return min(FIRST_WAIT_S * 2.0**doublings, LONGEST_ALONE_S if alone else LONGEST_WAIT_S)
