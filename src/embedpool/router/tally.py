"""What the router has done, counted for `status` and those who draw it: requests by class and outcome, latency by stage,
micro-batches. Pure; called by the core for every request and job, so each call costs about a microsecond.

It never looks into the core. Everything counts since the router's start, and begins again with the next router, as counters
of Prometheus may. A request ends here in one of three ways: answered, refused (by code), or dropped because its session ended.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from embedpool.protocol import Run

# 1, 2, 5 per decade: from a query to a static model to a bulk request of minutes. Prometheus keeps a series per bound.
LE_MS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5)
LE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LE_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
STAGES = ("queue", "tokenize", "run", "total")


@dataclass(slots=True)
class Histogram:
    """`counts[i]` values were at most `LE_MS[i]` and more than the bound before; the last is for what is above all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LE_MS) + 1))
    sum_ms: float = 0.0

    def facts(self) -> dict[str, Any]:
        return {"le_ms": LE_MS, "counts": self.counts, "sum_ms": round(self.sum_ms, 3)}


@dataclass(slots=True)
class ClassTally:
    """Requests of one class. `rows` and `tokens` are those of answered ones; the stages have one value of each of these."""

    requests: int = 0
    answered: int = 0
    dropped: int = 0
    rows: int = 0
    tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    queue: Histogram = field(default_factory=Histogram)
    tokenize: Histogram = field(default_factory=Histogram)
    run: Histogram = field(default_factory=Histogram)
    total: Histogram = field(default_factory=Histogram)

    def answer(self, rows: int, tokens: int, took: tuple[float, float, float], total_ms: float) -> None:
        """`took`: milliseconds in the queue, in tokenising, in running, as `vectors` tells them. `total_ms`: from the arrival
        to now. (Written out, without a call per histogram: this is once per request.)"""
        queue_ms, tokenize_ms, run_ms = took
        self.answered += 1
        self.rows += rows
        self.tokens += tokens
        stage = self.queue
        stage.counts[bisect_left(LE_MS, queue_ms)] += 1
        stage.sum_ms += queue_ms
        stage = self.tokenize
        stage.counts[bisect_left(LE_MS, tokenize_ms)] += 1
        stage.sum_ms += tokenize_ms
        stage = self.run
        stage.counts[bisect_left(LE_MS, run_ms)] += 1
        stage.sum_ms += run_ms
        stage = self.total
        stage.counts[bisect_left(LE_MS, total_ms)] += 1
        stage.sum_ms += total_ms

    def refuse(self, code: str) -> None:
        self.refused[code] = self.refused.get(code, 0) + 1

    def facts(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "answered": self.answered,
            "dropped": self.dropped,
            "rows": self.rows,
            "tokens": self.tokens,
            "refused": self.refused,
            "stages": {name: getattr(self, name).facts() for name in STAGES},
        }


@dataclass(slots=True)
class RunTally:
    """Calls of the model. `tokens` are the texts' own, `padded_tokens` what was computed: rows times the longest of them."""

    count: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    by_rows: list[int] = field(default_factory=lambda: [0] * (len(LE_ROWS) + 1))
    by_tokens: list[int] = field(default_factory=lambda: [0] * (len(LE_TOKENS) + 1))

    def add(self, runs: Iterable[Run]) -> None:
        """One job's."""
        for run in runs:
            padded = run.rows * run.tokens
            self.count += 1
            self.rows += run.rows
            self.tokens += run.own_tokens
            self.padded_tokens += padded
            self.by_rows[bisect_left(LE_ROWS, run.rows)] += 1
            self.by_tokens[bisect_left(LE_TOKENS, padded)] += 1

    def facts(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "rows": self.rows,
            "tokens": self.tokens,
            "padded_tokens": self.padded_tokens,
            "rows_per_run": {"le": LE_ROWS, "counts": self.by_rows},
            "tokens_per_run": {"le": LE_TOKENS, "counts": self.by_tokens},
        }


@dataclass(slots=True)
class Tally:
    interactive: ClassTally = field(default_factory=ClassTally)
    bulk: ClassTally = field(default_factory=ClassTally)
    runs: RunTally = field(default_factory=RunTally)

    def of(self, interactive: bool) -> ClassTally:
        return self.interactive if interactive else self.bulk
