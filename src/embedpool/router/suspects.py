"""Which row ends its workers: found by halving, refused alone, and remembered. Pure; owned by the core.

A job that a worker died with runs once more as it is; then it is split, and its halves need one more death each, until the row
that kills is alone. Where workers also die of other things (killed from outside, out of memory), two deaths prove little
against a row that is alone: it then needs MOST_DEATHS. Every death shortens the list of suspects or is counted, so this ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from embedpool.router.state import Job

POISON_S, MOST_POISON = 600.0, 1024  # how long rows that ended their workers are remembered, and how many
DEATHS, MOST_DEATHS = 2, 4  # of workers that ran one row alone, until it is refused: as a rule, and where others die too
UNREST_S = 60.0  # how long a death counts as a sign that workers die of other things


@dataclass(slots=True)
class Suspects:
    """`poison` are digests of rows that ended their workers, and until when that is remembered."""

    poison: dict[int, float] = field(default_factory=dict)
    _deaths: deque[tuple[float, int]] = field(default_factory=deque)  # when, and the lineage of the job

    def died_with(self, job: Job, now: float) -> Literal["again", "split", "poison"]:
        """A worker ended while it ran this job: what is to become of it."""
        job.deaths += 1
        while self._deaths and self._deaths[0][0] < now - UNREST_S:
            self._deaths.popleft()
        self._deaths.append((now, job.lineage))
        if job.rows() > 1:
            return "again" if job.deaths < DEATHS else "split"
        unrest = any(lineage != job.lineage for _, lineage in self._deaths)
        return "again" if job.deaths < (MOST_DEATHS if unrest else DEATHS) else "poison"

    def remember(self, digest: int, now: float) -> None:
        if len(self.poison) < MOST_POISON:
            self.poison[digest] = now + POISON_S

    def forget(self, now: float) -> None:
        """What is too long ago."""
        self.poison = {digest: until for digest, until in self.poison.items() if until > now}
