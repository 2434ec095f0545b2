"""The highest rate that meets an objective: by doubling, then by halving the gap. Pure: it says which rate to run next, and is
told what came of it.

Rules
1. A rate is judged by the majority of its repeats, and no longer run than until that is decided: a single disturbed run decides
   nothing.
2. It ends when the lowest rate that failed is within RESOLUTION of the highest that held, or when MOST_RUNS have been made.
3. A rate at which the load itself came late says nothing of the pool. It counts as failed, and the result says by what.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from embedpool.bench.results import Objective, Tried
from embedpool.errors import ConfigError

Verdict = Literal["met", "missed", "late"]
RESOLUTION = 0.05
MOST_RUNS = 60
LOWEST_PER_S, HIGHEST_PER_S = 0.1, 1e6
_SLO = re.compile(r"p(?P<percent>\d+(\.\d+)?)\s*(=|<=?)\s*(?P<limit>\d+(\.\d+)?)\s*(?P<unit>ms|s)")


@dataclass(frozen=True, slots=True)
class Slo:
    """`percent` of all requests take at most `limit_ms`."""

    percent: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.percent:g}={self.limit_ms:g}ms"


def parse_slo(text: str) -> Slo:
    """`p95=20ms`, `p99.9=1s`. Raises ConfigError."""
    found = _SLO.fullmatch(text.strip())
    if found is not None:
        percent, limit = float(found["percent"]), float(found["limit"]) * (1e3 if found["unit"] == "s" else 1)
        if 0 < percent < 100 and limit > 0:
            return Slo(percent, limit)
    raise ConfigError(f"--slo is a percentile and a time, like p95=20ms or p99.9=1s, not {text!r}")


@dataclass(slots=True)
class Search:
    """`start` is the first rate that is tried; below `lowest` none is."""

    start: float
    repeats: int
    lowest: float = LOWEST_PER_S
    resolution: float = RESOLUTION
    most_runs: int = MOST_RUNS
    verdicts: dict[float, list[Verdict]] = field(default_factory=dict)
    holds: float | None = None  # the highest rate that met the objective
    fails: float | None = None  # the lowest that did not
    _rate: float = field(init=False)

    def __post_init__(self) -> None:
        self._rate = _round(self.start)

    @property
    def runs(self) -> int:
        return sum(map(len, self.verdicts.values()))

    def next_rate(self) -> float | None:
        """The rate of the next run; None when the search has ended."""
        return None if self.runs >= self.most_runs or self._ended() else self._rate

    def took(self, verdict: Verdict) -> None:
        """What came of a run at `next_rate()`."""
        found = self.verdicts.setdefault(self._rate, [])
        found.append(verdict)
        met = found.count("met")
        if 2 * met > self.repeats:
            self.holds = max(self.holds or 0.0, self._rate)
        elif 2 * (len(found) - met) >= self.repeats:
            self.fails = min(self.fails or math.inf, self._rate)
        else:
            return
        self._rate = self._following()

    def result(self, slo: Slo) -> Objective:
        tried = tuple(Tried(rate=rate, verdicts=tuple(self.verdicts[rate])) for rate in sorted(self.verdicts))
        return Objective(asked=str(slo), rate=self.holds, ended_by=self._ended_by(), tried=tried)

    def _ended(self) -> bool:
        if self.holds is not None and self.fails is not None:
            return self.fails <= self.holds * (1 + self.resolution)
        return not self.lowest <= self._rate <= HIGHEST_PER_S

    def _following(self) -> float:
        if self.fails is None:
            return _round(2 * (self.holds or self.start))
        if self.holds is None:
            return _round(self.fails / 2)
        # In the middle by ratio. Rounded, it could be one of the two again: at three digits the gap is then under 1 %.
        return _round(math.sqrt(self.holds * self.fails))

    def _ended_by(self) -> str:
        if self.runs >= self.most_runs and not self._ended():
            return "runs"
        found = Counter(self.verdicts.get(self.fails, ())) if self.fails is not None else Counter[Verdict]()
        return "load" if found["late"] > found["missed"] else "slo"


def _round(rate: float) -> float:
    """To three digits: a rate that can be said."""
    return float(f"{rate:.3g}")
