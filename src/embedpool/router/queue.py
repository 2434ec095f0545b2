"""Requests that wait, and cutting them into jobs. Pure; owned by the core.

Rules
1. A row waits in exactly one place: its request's `waiting`, behind the row that it follows (alike.py), or in one job.
2. The two classes are two lines. Which of them a worker is given from is the core's business, and which job runs first the
   worker's (worker.turns): an urgent one overtakes, but a bulk micro-batch gives way a few times only, so neither starves.
3. Within a class, sessions take turns, a job's rows each; within a session, requests go in the order of their arrival.
4. A job is at most `slice_ms` of estimated work (load.slice_ms says how much that is now), except a single row that is more.
5. Rows of one request are handed out longest first, so that rows of like length share a job and little is padded.
6. What is held counts: rows that wait or follow, and the bytes of their requests; units are those of rows that wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from embedpool.router.cost import CostModel
from embedpool.router.state import Request, Session, Slice


@dataclass(slots=True)
class Line:
    """The waiting requests of one class, by session; the first session has the next turn."""

    turns: dict[Session, deque[Request]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.turns)

    def __iter__(self) -> Iterator[Request]:
        for requests in self.turns.values():
            yield from requests

    def add(self, request: Request) -> None:
        self.turns.setdefault(request.session, deque()).append(request)

    def remove(self, request: Request) -> None:
        requests = self.turns[request.session]
        requests.remove(request)
        if not requests:
            del self.turns[request.session]

    def first(self) -> Request:
        return next(iter(self.turns.values()))[0]

    def next_turn(self) -> None:
        """The first session goes to the end of the line."""
        session = next(iter(self.turns))
        self.turns[session] = self.turns.pop(session)


@dataclass(slots=True)
class Queue:
    """Requests with rows that wait or follow, both classes. The numbers are sums; `nbytes` counts whole requests."""

    interactive: Line = field(default_factory=Line)
    bulk: Line = field(default_factory=Line)
    held: dict[Request, None] = field(default_factory=dict)  # in the order of their arrival
    rows: int = 0
    units: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})  # interactive ones, and bulk
    nbytes: int = 0

    def __iter__(self) -> Iterator[Request]:
        return iter(self.held)

    @property
    def requests(self) -> int:
        return len(self.held)

    def add(self, request: Request) -> None:
        self.held[request] = None
        self.nbytes += request.nbytes
        request.session.nbytes += request.nbytes
        self._count_rows(request, len(request.waiting) + request.following)
        if request.waiting:
            (self.interactive if request.interactive else self.bulk).add(request)
            self._count(request, request.waiting, 1)

    def add_row(self, request: Request, row: int) -> None:
        """A row that followed, and counts already, waits from now on."""
        if not request.waiting:
            self._line(request).add(request)
        request.waiting.append(row)
        self._count(request, [row], 1)

    def remove(self, request: Request) -> None:
        """Drops the request's waiting rows, and what it counts for those that follow; those in jobs are not touched."""
        if request not in self.held:
            return
        self._count_rows(request, -len(request.waiting) - request.following)
        self._release(request)
        if request.waiting:
            self._count(request, request.waiting, -1)
            request.waiting.clear()
            self._line(request).remove(request)

    def gone(self, request: Request, rows: int) -> None:
        """So many rows of it follow no longer: they are in a job."""
        self._count_rows(request, -rows)
        self._release_if_done(request)

    def take(
        self, line: Line, cost: CostModel, slice_ms: float, max_rows: int, late: Callable[[Request], bool] = lambda _: False
    ) -> list[Slice]:
        """The rows of the line's next job; empty when nothing waits. Ends before a request that would be answered too late."""
        slices: list[Slice] = []
        room_ms, room_rows = slice_ms, max_rows
        while line and room_rows:
            request = line.first()
            if slices and late(request):
                break
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
            self._count_rows(request, -len(rows))
            self._count(request, rows, -1)
            slices.append(Slice(request, tuple(rows)))
            if not request.waiting:
                self._line(request).remove(request)
                self._release_if_done(request)
        if line and slices and line.first().session is slices[0].request.session:
            line.next_turn()
        return slices

    def _line(self, request: Request) -> Line:
        return self.interactive if request.interactive else self.bulk

    def _release_if_done(self, request: Request) -> None:
        if not request.waiting and not request.following:
            self._release(request)

    def _release(self, request: Request) -> None:
        del self.held[request]
        self.nbytes -= request.nbytes
        request.session.nbytes -= request.nbytes

    def _count_rows(self, request: Request, rows: int) -> None:
        self.rows += rows
        request.session.rows += rows

    def _count(self, request: Request, rows: list[int], sign: int) -> None:
        units = sign * (request.units[rows[0]] if len(rows) == 1 else sum([request.units[row] for row in rows]))
        self.units[request.interactive] += units
        request.session.units[request.interactive] += units

    def units_before(self, request: Request, turn: float) -> float:
        """What is given out before a new request of so many units is done, as sessions take turns of at most `turn` units:
        what its own session has waiting, and of each other one at most as much as that, and a turn."""
        kind = request.interactive
        mine = request.session.units[kind]
        most = mine + sum(request.units) + turn
        others = sum([min(s.units[kind], most) for s in self._line(request).turns if s is not request.session])
        return mine + others + (0 if kind else self.units[True])
