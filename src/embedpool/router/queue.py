"""Requests that wait, and cutting them into jobs. Pure; owned by the core.

Rules
1. A row waits in exactly one place: its request's `waiting`, or one job.
2. Interactive work goes first, but of any AGEING consecutive jobs with both kinds waiting, one is bulk: neither starves.
3. Requests of one class take turns, a slice each, so that a long one does not shut out a short one.
4. A job is at most `slice_ms` of estimated work, except a single row that alone is more.
5. Rows of one request are handed out longest first, so that rows of like length share a job and little is padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from embedpool.router.cost import CostModel
from embedpool.router.state import Request, Slice

AGEING = 4


@dataclass(slots=True)
class Queue:
    """Waiting requests, both classes. The numbers are sums over what waits; `nbytes` counts whole requests."""

    interactive: deque[Request] = field(default_factory=deque)
    bulk: deque[Request] = field(default_factory=deque)
    rows: int = 0
    units: int = 0
    interactive_units: int = 0
    nbytes: int = 0
    _since_bulk: int = 0

    def __len__(self) -> int:
        return len(self.interactive) + len(self.bulk)

    def __iter__(self) -> Iterator[Request]:
        yield from self.interactive
        yield from self.bulk

    def add(self, request: Request) -> None:
        (self.interactive if request.interactive else self.bulk).append(request)
        self.nbytes += request.nbytes
        self._count(request, request.waiting, 1)

    def remove(self, request: Request) -> None:
        """Drops the request's waiting rows; those in jobs are not touched. Does nothing if none wait."""
        if not request.waiting:
            return
        (self.interactive if request.interactive else self.bulk).remove(request)
        self.nbytes -= request.nbytes
        self._count(request, request.waiting, -1)
        request.waiting.clear()

    def take(self, cost: CostModel, slice_ms: float, max_rows: int) -> list[Slice]:
        """The next job's rows; empty when nothing waits."""
        line = self._next_line()
        slices: list[Slice] = []
        room_ms, room_rows = slice_ms, max_rows
        while line and room_rows:
            request = line[0]
            rows: list[int] = []
            while request.waiting and room_rows:
                ms = cost.ms(request.units[request.waiting[-1]])
                if ms > room_ms and (slices or rows):
                    break
                rows.append(request.waiting.pop())
                room_ms -= ms
                room_rows -= 1
            if not rows:
                break
            slices.append(self._taken(line, request, rows))
        return slices

    def _next_line(self) -> deque[Request]:
        if not self.bulk:
            return self.interactive
        if self.interactive and self._since_bulk < AGEING - 1:
            self._since_bulk += 1
            return self.interactive
        self._since_bulk = 0
        return self.bulk

    def _taken(self, line: deque[Request], request: Request, rows: list[int]) -> Slice:
        self._count(request, rows, -1)
        line.popleft()
        if request.waiting:
            line.append(request)
        else:
            self.nbytes -= request.nbytes
        return Slice(request, tuple(rows))

    def _count(self, request: Request, rows: list[int], sign: int) -> None:
        units = sign * sum([request.units[row] for row in rows])
        self.rows += sign * len(rows)
        self.units += units
        if request.interactive:
            self.interactive_units += units
