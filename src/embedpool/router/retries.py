"""Jobs whose worker was lost, until they are given out again. Pure; owned by the core.

A job that its worker had not begun is no suspect (a worker may be dead before it is known to be), unless nothing is ever begun:
a job that was the next one of MOST_LOSSES lost workers may end them before they can say so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from embedpool.router.alike import Place, key_of, slices_of
from embedpool.router.state import Job, Slice
from embedpool.router.suspects import Suspects

MOST_LOSSES = 4


class MakeJob(Protocol):
    """A job with a number of its own."""

    def __call__(self, slices: list[Slice], urgent: bool, *, deaths: int, lineage: int) -> Job: ...


@dataclass(slots=True)
class Retries:
    """The next one to be given out is first."""

    suspects: Suspects = field(default_factory=Suspects)
    jobs: deque[Job] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return bool(self.jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def has(self, urgent: bool) -> bool:
        return bool(self.jobs) and any(job.urgent == urgent for job in self.jobs)

    def units(self, *, urgent_only: bool = False) -> int:
        return 0 if not self.jobs else sum([job.units for job in self.jobs if job.urgent or not urgent_only])

    def take(self, urgent: bool) -> Job | None:
        """The next one of this class."""
        for job in self.jobs:
            if job.urgent == urgent:
                self.jobs.remove(job)
                return job
        return None

    def add(self, lost: Sequence[Job], begun: int, now: float, make: MakeJob) -> Slice | None:
        """What a lost worker had in hand, `begun` being the job that it had begun. Gives the row that is taken for the reason
        of its end, if one is: it is in no job any more, but still counted as if it were."""
        suspect = _suspect(lost, begun)
        poison = None
        for job in reversed(lost):
            if job is not suspect:
                self.jobs.appendleft(job)
                continue
            match self.suspects.died_with(job, now):
                case "again":
                    self.jobs.appendleft(job)
                case "split":
                    self.jobs.extendleft(reversed(_halves(job, make)))
                case "poison":
                    (poison,) = job.slices
        return poison

    def drop_abandoned(self) -> list[Slice]:
        """Takes out, and gives, the rows that nobody wants any more."""
        dropped = [piece for job in self.jobs for piece in job.drop_abandoned()]
        if dropped:
            self.jobs = deque([job for job in self.jobs if job.slices])
        return dropped

    def places(self, key: Hashable) -> list[Place]:
        """The rows that the model would read as this key says."""
        rows = ((piece.request, row) for job in self.jobs for piece in job.slices for row in piece.rows)
        return [(request, row) for request, row in rows if key_of(request.ask, row) == key]


def _suspect(jobs: Sequence[Job], begun: int) -> Job | None:
    """Which of its jobs a worker died with: the one that it had begun."""
    for job in jobs:
        if job.id == begun:
            return job
    if not jobs:
        return None
    jobs[0].losses += 1
    if jobs[0].losses < MOST_LOSSES:
        return None
    jobs[0].losses = 0
    return jobs[0]


def _halves(job: Job, make: MakeJob) -> list[Job]:
    """The suspects in two jobs, each with one death to its name: one more splits it again."""
    places = [(piece.request, row) for piece in job.slices for row in piece.rows]
    for piece in job.slices:
        piece.request.in_jobs -= 1
    halves = []
    for part in (places[: len(places) // 2], places[len(places) // 2 :]):
        slices = slices_of(part)
        for piece in slices:
            piece.request.in_jobs += 1
        halves.append(make(slices, job.urgent, deaths=1, lineage=job.lineage))
    return halves
