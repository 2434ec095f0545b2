"""What the router core remembers. Plain records: the rules about them are in core.py and queue.py."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from embedpool.protocol import Embed, Refused


@dataclass(slots=True, eq=False)
class Session:
    """One client's session. Requests hold the object, not the key: a key may come back with a new segment."""

    key: bytes
    segment: str
    segment_bytes: int
    open: dict[int, Request] = field(default_factory=dict)
    inline_bytes: int = 0  # of vectors that open requests will get inline: the router holds them
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
    in_jobs: int = 0  # slices in jobs
    done_rows: int = 0
    tokens: int = 0
    inline: bytearray | None = None
    refusal: Refused | None = None

    @property
    def abandoned(self) -> bool:
        """Nobody wants its vectors any more."""
        return self.refusal is not None or self.session.closed


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of one request within a job."""

    request: Request
    rows: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Job:
    """`deaths` counts the workers that died while they ran it, `losses` those that were lost before they began it. `urgent`:
    its rows are interactive, and it overtakes what is not."""

    id: int
    slices: list[Slice]
    urgent: bool
    deaths: int = 0
    losses: int = 0
    units: int = 0
    hung_at: float = math.inf

    def __post_init__(self) -> None:
        self.weigh()

    def weigh(self) -> None:
        """Brings `units` up to date with `slices`."""
        self.units = sum(piece.request.units[row] for piece in self.slices for row in piece.rows)

    def drop_abandoned(self) -> list[Request]:
        """Takes out the rows that nobody wants any more; whose they were."""
        dropped = [piece for piece in self.slices if piece.request.abandoned]
        for piece in dropped:
            self.slices.remove(piece)
            piece.request.in_jobs -= 1
        if dropped:
            self.weigh()
        return [piece.request for piece in dropped]

    def rows(self) -> int:
        return sum(len(piece.rows) for piece in self.slices)


@dataclass(slots=True)
class Worker:
    jobs: deque[Job] = field(default_factory=deque)  # in the order in which they are run, as far as that is known
    killed: bool = False
    jobs_done: int = 0
    rows_done: int = 0


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
    late_answers: int = 0
