"""How long work takes, learned from finished jobs. Pure. One model per pool of workers: that is, per model and layout.

Work is counted in *units* before a text is tokenised, so that what waits can be summed up once and judged at any time:

    units of a row = (CHARS_PER_TOKEN * tokens + ROW_UNITS) * shape[length class of tokens]
    milliseconds   = units * unit_ms

`tokens` is estimated from the text's characters by a ratio that follows the traffic (English 4, Chinese 1 to 2). `shape` says
how much dearer or cheaper a token is in texts of that length than on the whole (attention grows with the square of the length,
short rows run in fuller batches); it follows the runs that workers report, slowly. `unit_ms` is the speed at this moment; it
follows whole jobs, fast. A class holds the lengths of one power of two.

What waits takes longer than what it waits for takes to run: between two jobs lie the router's turn and, on a machine that has
more to do than cores, the wait for one. `drag` is how much longer, learned from jobs that came right behind another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from embedpool.protocol import Run

CHARS_PER_TOKEN = 4  # English text under WordPiece and Gemma's vocabulary: 3.9–4.4 over the standard library's docstrings
ROW_UNITS = 24  # MiniLM fp32, one core: 8 tokens cost 2.7 ms, 64 tokens 12.3 ms: a constant of about 6 tokens a row
SPECIAL_TOKENS = 2  # of a row: usual for BERT and Gemma alike
MEMORY_UNITS = 20_000.0  # the horizon of the speed: about 80 texts of 250 characters
MEMORY_TOKENS = 20_000.0  # the horizon of the characters per token
SHAPE_STEP = 0.05  # of the way to what one run shows: tens of runs make a shape, one outlier does not
MEMORY_MS = 500.0  # the horizon of the drag
MEMORY_JOBS = 50  # the horizon of the error
MOST_OFF = 4.0  # a single measurement counts as at most this many times off: a worker that was stopped is no slow model


@dataclass(slots=True)
class CostModel:
    """`unit_ms` starts from a worker's warm-up and follows the jobs; `max_tokens` is the model's."""

    max_tokens: int
    unit_ms: float = 0.05
    chars_per_token: float = float(CHARS_PER_TOKEN)
    shape: list[float] = field(default_factory=list)
    drag: float = 1.0
    error: float = 0.0  # moving mean of |ln(measured / estimated)| of whole jobs: 0.1 is a tenth off
    _weight: float = 0.0
    _jobs: int = 0
    _chars_weight: float = 0.0
    _usual: float = 0.0  # the mean of log(measured / estimated) over runs: what all lengths have in common is the speed's

    def __post_init__(self) -> None:
        self.shape = self.shape or [1.0] * (self.max_tokens.bit_length() + 1)

    def units(self, chars: int) -> int:
        """Of a row that has so many characters."""
        tokens = chars / self.chars_per_token
        return self._units(tokens if tokens < self.max_tokens else self.max_tokens)

    def _units(self, tokens: float) -> int:
        return int((CHARS_PER_TOKEN * tokens + ROW_UNITS) * self.shape[int(tokens).bit_length()] + 0.5) or 1

    def ms(self, units: float) -> float:
        return units * self.unit_ms

    def wait_ms(self, units: float) -> float:
        """How long a worker takes to be through with so much."""
        return units * self.unit_ms * self.drag

    def row_ms(self, tokens: int) -> float:
        """Of one text of so many tokens, among others of its length."""
        return self.ms(self._units(min(tokens, self.max_tokens)))

    def seed(self, unit_ms: float) -> None:
        """A worker's warm-up; counts only while nothing was learned from real work."""
        if not self._weight:
            self.unit_ms = max(unit_ms, 1e-6)

    def learn(self, units: float, ms: float) -> None:
        """A finished job. One outlier (a worker that was stopped for a while) moves the mean by its share at most."""
        if units <= 0:
            return
        if ms > 0.0:
            if self._jobs < MEMORY_JOBS:
                self._jobs += 1
            self.error += (abs(math.log(ms / (units * self.unit_ms))) - self.error) / self._jobs
        measured = min(max(ms / units, self.unit_ms / MOST_OFF), self.unit_ms * MOST_OFF)
        kept = min(self._weight, MEMORY_UNITS)
        self.unit_ms = max((self.unit_ms * kept + measured * units) / (kept + units), 1e-6)
        self._weight = kept + units

    def learn_drag(self, run_ms: float, took_ms: float) -> None:
        """A job that a worker had in hand when it ended another one: its run, and the time from the other's end to its own."""
        if run_ms > 0.0:
            off = min(max(took_ms / run_ms, 1.0), MOST_OFF)
            self.drag += (off - self.drag) * run_ms / (MEMORY_MS + run_ms)

    def learn_text(self, chars: int, tokens: int, rows: int) -> None:
        """How many tokens rows of so many characters had. Rows that were cut off must not be among them."""
        words = tokens - SPECIAL_TOKENS * rows
        if chars <= 0 or words <= 0:
            return
        kept = min(self._chars_weight, MEMORY_TOKENS)
        ratio = min(max(chars / words, 0.5), 16.0)
        self.chars_per_token = (self.chars_per_token * kept + ratio * words) / (kept + words)
        self._chars_weight = kept + words

    def learn_shape(self, runs: Sequence[Run]) -> None:
        """The micro-batches of a finished job."""
        for run in runs:
            estimated_ms = self.ms(run.rows * self._units(min(run.tokens, self.max_tokens)))
            if run.ms <= 0.0 or estimated_ms <= 0.0:
                continue
            off = min(max(math.log(run.ms / estimated_ms), -math.log(MOST_OFF)), math.log(MOST_OFF))
            self._usual += SHAPE_STEP * (off - self._usual)
            at = min(run.tokens, self.max_tokens).bit_length()
            self.shape[at] = min(max(self.shape[at] * math.exp(SHAPE_STEP * (off - self._usual)), 0.125), 8.0)
