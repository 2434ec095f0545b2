"""How many file descriptors may still be given out. Pure: counting those that are open is an argument.

Kept apart from max_sessions because a connection takes a descriptor before it has said who it is: peers decide how many
connections there are, and the configuration how many descriptors they get (invariant 7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

OWN = 64  # the router's own: libzmq's and Python's are 20
SEATLESS = 512  # connections without a session: those that ask for the status, and those that never say anything
WORKERS_MOST = 512  # config.workers
SPARE = 8  # never given out: counting takes one, and what a library opens for a moment


@dataclass(slots=True)
class Descriptors:
    """`limit`: one more cannot be had (RLIMIT_NOFILE), or is not meant to be. `count` gives how many are open."""

    limit: int
    count: Callable[[], int]
    promised: int = 0  # to listeners, which take theirs at a time of their own
    _left: int = 0  # at least so many are free: closing is not heard of, so that only counting makes it more

    @property
    def for_workers(self) -> int:
        """Of those left, clients get none: a worker that is started again finds one, whatever clients have done."""
        return min(self.limit // 3, WORKERS_MOST)

    @property
    def for_sessions(self) -> int:
        """So many sessions find a connection and a segment."""
        return max(0, self.limit - self.for_workers - OWN) // 2

    def take(self, keep: int) -> bool:
        """Whether the caller may open one more, so that `keep` and SPARE are left.

        Counting is linear in what is open (1.3 us each), so that it is done once for all that it found to be left.
        """
        keep += SPARE
        if self._left <= keep:
            self._left = self.limit - self.count() - self.promised
        if self._left <= keep:
            return False
        self._left -= 1
        return True

    def promise(self, keep: int) -> bool:
        """As take, for one that is opened later; until `kept` it is neither open nor free."""
        if not self.take(keep):
            return False
        self.promised += 1
        return True

    def kept(self) -> None:
        """What was promised is open now, or was not needed."""
        self.promised -= 1


def limit_of(process_limit: int, sessions: int) -> int:
    """The limit for a router of so many sessions: each may have a connection and a segment."""
    wanted = OWN + 2 * sessions + SEATLESS + WORKERS_MOST
    return min(process_limit, wanted)
