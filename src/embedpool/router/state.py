"""What the router core remembers. Plain records: the rules about them are in core.py and queue.py."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from embedpool.protocol import Embed, Refused
from embedpool.router.traces import Trace


@dataclass(slots=True, eq=False)
class Session:
    """One client's session. Requests hold the object, not the key: a key may come back with a new segment."""

    key: bytes
    segment: str
    segment_bytes: int
    open: dict[int, Request] = field(default_factory=dict)
    inline_bytes: int = 0  # of vectors that open requests will get inline: the router holds them
    rows: int = 0  # that wait or follow
    nbytes: int = 0  # of requests with such rows
    units: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})  # that wait: interactive ones, and bulk
    closed: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """One `embed` message that was admitted, until it is answered."""

    session: Session
    ask: Embed
    dim: int
    nbytes: int  # of the message: what it costs the router to hold it
    units: list[int]  # per row, see cost.py
    arrived_at: float
    deadline_at: float
    interactive: bool
    waiting: list[int]  # rows not in any job, the next one last
    following: int = 0  # rows that wait for another request's row of the same text (alike.py)
    in_jobs: int = 0  # slices in jobs
    done_rows: int = 0
    tokens: int = 0
    begun_at: float = math.inf  # when a worker took up the first of its rows
    tokenize_ms: float = 0.0
    run_ms: float = 0.0
    inline: bytearray | None = None
    refusal: Refused | None = None
    trace: Trace | None = None  # of a request whose trace is recorded

    @property
    def abandoned(self) -> bool:
        """Nobody wants its vectors any more."""
        return self.refusal is not None or self.session.closed


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of one request within a job. `free`: they are computed for others anyway, and cost nothing."""

    request: Request
    rows: tuple[int, ...]
    free: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """`deaths` counts the workers that died while they ran it, `losses` those that were lost when it
    was their next one; `lineage`
    is the first job that these rows were in together, before it was split. `urgent`: its rows are interactive, and it
    overtakes what is not. `repeats`: the job whose vectors its worker still has for these texts, 0 for none."""

    id: int
    slices: list[Slice]
    urgent: bool
    deaths: int = 0
    lineage: int = 0
    repeats: int = 0
    losses: int = 0
    units: int = 0
    hung_at: float = math.inf
    began_at: float = math.inf  # when it was its worker's next one
    chained: bool = False  # it began when its worker had ended another job, and nothing overtook it

    def __post_init__(self) -> None:
        self.lineage = self.lineage or self.id
        self.weigh()

    def weigh(self) -> None:
        """Brings `units` up to date with `slices`."""
        self.units = sum([s.request.units[row] for s in self.slices if not s.free for row in s.rows])

    def forget_repeat(self) -> None:
        """Its worker is gone, and so are the vectors that it would have written."""
        self.repeats, self.slices = 0, [Slice(piece.request, piece.rows) for piece in self.slices]
        self.weigh()

    def drop_abandoned(self) -> list[Slice]:
        """Takes out, and gives, the rows that nobody wants any more."""
        dropped = [piece for piece in self.slices if piece.request.abandoned]
        for piece in dropped:
            self.slices.remove(piece)
            piece.request.in_jobs -= 1
        if dropped:
            self.weigh()
        return dropped

    def rows(self) -> int:
        return sum(len(piece.rows) for piece in self.slices)


@dataclass(slots=True)
class Worker:
    """`retiring`: it gets no more jobs, and ends when it has done those that it has."""

    jobs: deque[Job] = field(default_factory=deque)  # in the order in which they are run, as far as that is known
    killed: bool = False
    retiring: bool = False
    given: int = 0  # the number of its last job
    index: int = 0  # its place in the pool
    jobs_done: int = 0
    rows_done: int = 0
    busy_s: float = 0.0  # with a job in hand, up to `busy_at`
    busy_at: float = math.inf  # since when it has the jobs that it has; infinite without one

    def busy_until(self, now: float) -> float:
        """Seconds with a job in hand, ever."""
        return self.busy_s + max(0.0, now - self.busy_at)

    @property
    def takes_jobs(self) -> bool:
        return not (self.killed or self.retiring)


@dataclass(slots=True)
class Counters:
    """Since the router started."""

    requests: int = 0
    answered: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    jobs: int = 0
    requeued: int = 0
    alike: int = 0  # rows that got another row's vector instead of a computation of their own
    late_answers: int = 0
