"""Sessions as files and times: who is connected, which segment is theirs, who has gone. Called by server only.

Liveness of a session with a segment is the client's flock, which the kernel drops with the process; a session without one
is forgotten after `idle_s` without a message and without an open request. Forgetting is harmless: the next message of a
client that still lives is answered with Who, and it says hello again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from embedpool.errors import Overloaded, SegmentError
from embedpool.protocol import Hello
from embedpool.shm import segment as shm

log = logging.getLogger("embedpool.router")

GRACE_S = 10.0  # between welcome and the client's lock: a client under a debugger or on a loaded board still makes it


@dataclass(slots=True)
class Seat:
    """One session's file and times."""

    client: str
    opened_at: float
    seen_at: float
    segment: shm.Segment | None


@dataclass(slots=True)
class Sessions:
    """Bounds: `most` sessions, `max_bytes` per segment, `total_bytes` over all segments."""

    directory: Path | None  # None: no shared memory (TCP clients cannot map our files)
    most: int
    max_bytes: int
    total_bytes: int
    idle_s: float
    may_open: Callable[[], bool]  # whether a descriptor is left for a segment
    seats: dict[bytes, Seat] = field(default_factory=dict)
    used_bytes: int = 0

    def open(self, key: bytes, hello: Hello, now: float) -> str:
        """Seats a client, with a segment if it asked for one. Returns the warning for its welcome, "" if there is none.

        Raises Overloaded when every seat is taken.
        """
        self.close(key)
        if len(self.seats) >= self.most:
            raise Overloaded(f"all {self.most} sessions are in use", retry_after_ms=1000)
        found, warning = None, ""
        if hello.segment_bytes and self.directory is None:
            warning = "no shared memory over TCP: vectors come inline"
        elif hello.segment_bytes and self.directory is not None:
            found, warning = self._segment(self.directory, min(hello.segment_bytes, self.max_bytes))
        self.seats[key] = Seat(hello.client, now, now, found)
        return warning

    def _segment(self, directory: Path, size: int) -> tuple[shm.Segment | None, str]:
        if self.used_bytes + size > self.total_bytes:
            reason = f"{self.used_bytes} of max_shm_bytes {self.total_bytes} are in use"
            return None, f"no segment of {size} bytes: {reason}; vectors come inline"
        if not self.may_open():
            log.warning("segment refused: no file descriptor is left")
            return None, "no segment: the pool has no file descriptor left for it; vectors come inline"
        try:
            found = shm.create(directory, size)
        except SegmentError as error:
            log.warning("segment refused: %s", error.message)
            return None, f"{error.message}; vectors come inline"
        self.used_bytes += size
        return found, ""

    def close(self, key: bytes) -> str:
        """Frees the seat; its segment's name, or "" if it had none."""
        seat = self.seats.pop(key, None)
        if seat is None or seat.segment is None:
            return ""
        self.used_bytes -= seat.segment.size
        seat.segment.remove()
        return seat.segment.name

    def close_all(self) -> None:
        for key in list(self.seats):
            self.close(key)

    def gone(self, now: float, busy: set[bytes]) -> list[bytes]:
        """Sessions whose client has left. `busy` are those with open requests."""
        return [key for key, seat in self.seats.items() if self._is_gone(seat, now, key in busy)]

    def _is_gone(self, seat: Seat, now: float, busy: bool) -> bool:
        if seat.segment is None:
            return not busy and now - seat.seen_at > self.idle_s
        if not seat.segment.is_abandoned():
            return False
        # A client takes its lock before it says anything in the session.
        return seat.seen_at > seat.opened_at or now - seat.opened_at > GRACE_S
