"""How long work takes, learned from finished jobs. Pure.

Work is counted in *units* before a text is tokenised: its characters, at most what the model can read, plus a constant for
the special tokens and for the weights that even the shortest text must read. A worker's time is proportional to units
closely enough to cut jobs and to judge deadlines; the factor is a decaying mean over the last jobs.
"""

from __future__ import annotations

from dataclasses import dataclass

CHARS_PER_TOKEN = 4  # English text under WordPiece and Gemma's vocabulary: 3.9–4.4 over the standard library's docstrings
ROW_UNITS = 24  # MiniLM fp32, one core: 8 tokens cost 2.7 ms, 64 tokens 12.3 ms: a constant of about 6 tokens a row
MEMORY_UNITS = 20_000.0  # the mean's horizon: about 80 texts of 250 characters


@dataclass(slots=True)
class CostModel:
    """`unit_ms` starts from a worker's warm-up and follows the jobs; `max_tokens` is the model's."""

    max_tokens: int
    unit_ms: float = 0.05
    _weight: float = 0.0

    def units(self, chars: int) -> int:
        """Of a row that has so many characters."""
        return min(chars, self.max_tokens * CHARS_PER_TOKEN) + ROW_UNITS

    def ms(self, units: float) -> float:
        return units * self.unit_ms

    def seed(self, unit_ms: float) -> None:
        """A worker's warm-up; counts only while nothing was learned from real work."""
        if not self._weight:
            self.unit_ms = max(unit_ms, 1e-6)

    def learn(self, units: float, ms: float) -> None:
        """A finished job. One outlier (a worker that was stopped for a while) moves the mean by its share at most."""
        if units <= 0:
            return
        measured = min(max(ms / units, self.unit_ms / 4), self.unit_ms * 4)
        kept = min(self._weight, MEMORY_UNITS)
        self.unit_ms = max((self.unit_ms * kept + measured * units) / (kept + units), 1e-6)
        self._weight = kept + units
