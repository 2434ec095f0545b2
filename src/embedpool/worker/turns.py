"""Who runs next within a worker: urgent jobs overtake a bulk job, between its micro-batches and in the middle of one.

A micro-batch that is interrupted is run again as a whole: the work is a pure function. It gives way MOST_GIVEN times at most,
then it runs to its end: of any MOST_GIVEN + 1 runs one belongs to the bulk job, so that it ends however many queries there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from embedpool import protocol as wire
from embedpool.models.encoding import Cut, Encoder, Interrupted, Vectors
from embedpool.protocol import Run
from embedpool.worker.inbox import Inbox

MOST_GIVEN = 8  # 3 left 5 % of queries waiting for whole runs of 45 ms; 12 gains nothing more
WORTH_S = 0.003  # a shorter run is soon over; watching it costs two system calls and a thread's wake-up
HORIZON_TOKENS = 4096.0  # of the mean that a run's duration is expected from


@dataclass(slots=True)
class Spent:
    """On the job that is being done, for the router: its cost model, and what it tells of a request."""

    runs: list[Run] = field(default_factory=list)
    tokenize_s: float = 0.0


@dataclass(slots=True)
class Turns:
    """The encoder as a bulk job sees it. `do` runs one urgent job and answers it."""

    inbox: Inbox
    encoder: Encoder
    do: Callable[[wire.Job], None]
    given: int = 0  # how many urgent jobs have overtaken
    wasted_s: float = 0.0  # in runs that were interrupted, ever
    spent: Spent = field(default_factory=Spent)
    _token_s: float = 0.0
    _weight: float = 0.0

    def tokens(self, texts: Sequence[str], cut: Cut) -> list[list[int]]:
        """As the encoder's. Raises what it raises."""
        began = time.perf_counter()
        try:
            return self.encoder.tokens(texts, cut)
        finally:
            self.spent.tokenize_s += time.perf_counter() - began

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:
        """One micro-batch of a bulk job. Raises what the encoder raises."""
        left = MOST_GIVEN
        while True:
            left -= self._give_way(left)
            expected_s = self._token_s * len(rows) * width
            began = time.perf_counter()
            try:
                if left <= 0 or expected_s < WORTH_S:
                    return self._timed(rows, width)
                with self.inbox.watching(expected_s):
                    return self._timed(rows, width)
            except Interrupted:
                self.wasted_s += time.perf_counter() - began
                left -= max(self._give_way(left), 1)

    def _give_way(self, most: int) -> int:
        """Runs the urgent jobs that have arrived; how many they were."""
        for done in range(most):
            job = self.inbox.urgent()
            if job is None:
                return done
            self.do(job)
            self.given += 1
        return most

    def run_now(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:
        """One micro-batch of an urgent job, which gives way to nobody. Raises what the encoder raises."""
        return self._timed(rows, width)

    def interrupt(self) -> None:
        self.encoder.interrupt()

    def _timed(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:
        began = time.perf_counter()
        vectors = self.encoder.run(rows, width)
        took_s = time.perf_counter() - began
        self.spent.runs.append(Run(len(rows), width, took_s * 1e3, sum(map(len, rows))))
        tokens = len(rows) * width
        kept = min(self._weight, HORIZON_TOKENS)
        self._token_s = (self._token_s * kept + took_s) / (kept + tokens)
        self._weight = kept + tokens
        return vectors
