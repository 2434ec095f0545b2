"""The numbers of a run that are compared, each by one name in the file, the tables and the plots; and their spread. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embedpool.bench.results import Latency, Run, Spread, Stage

LOWER, HIGHER, NEITHER = -1, 1, 0


@dataclass(frozen=True, slots=True)
class Number:
    """`value` None: a latency that falls on requests without vectors, longer than any."""

    name: str
    value: float | None


def direction(name: str) -> int:
    """Which way is better: LOWER, HIGHER, or NEITHER for what describes the run."""
    if name in ("offered_per_s", "bulk_share_percent", "late_p99_ms", "load_cores", "pool_cores"):
        return NEITHER
    return HIGHER if name.endswith(("_per_s", "_per_core")) else LOWER


def numbers_of(run: Run) -> dict[str, float | None]:
    return {number.name: number.value for number in _numbers(run)}


def _numbers(run: Run) -> Iterator[Number]:
    queries, bulk = run.queries, run.bulk
    if queries is not None:
        yield Number("offered_per_s", queries.offered_per_s)
        yield Number("answered_per_s", queries.answered_per_s)
        yield Number("failed_percent", failed_percent(queries.latency))
        yield from _percentiles("", queries.latency)
        yield from _means("", queries.stages)
        yield Number("late_p99_ms", queries.late_p99_ms)
    if bulk is not None:
        yield Number("bulk_texts_per_s", bulk.texts_per_s)
        yield Number("bulk_tokens_per_s", bulk.tokens_per_s)
        yield Number("bulk_failed_percent", failed_percent(bulk.latency))
        yield from _percentiles("bulk_", bulk.latency)
        yield from _means("bulk_", bulk.stages)
    tokens_per_s = (queries.tokens_per_s if queries else 0.0) + (bulk.tokens_per_s if bulk else 0.0)
    if bulk is not None and queries is not None and tokens_per_s:
        yield Number("bulk_share_percent", round(100 * bulk.tokens_per_s / tokens_per_s, 1))
    yield from _usage(run, tokens_per_s)


def _usage(run: Run, tokens_per_s: float) -> Iterator[Number]:
    cores = [part.cores for part in run.usage.parts if part.cores is not None]
    if cores:
        yield Number("pool_cores", round(sum(cores), 3))
        if sum(cores) > 0:
            yield Number("tokens_per_s_per_core", round(tokens_per_s / sum(cores), 1))
    sizes = [part.pss_bytes for part in run.usage.parts]
    if sizes and all(size is not None for size in sizes):
        yield Number("pool_pss_mb", round(sum(size or 0 for size in sizes) / 1e6, 1))
    yield Number("load_cores", run.usage.load_cores)


def failed_percent(latency: Latency) -> float:
    failed = sum(latency.failed.values())
    return round(100 * failed / (failed + latency.answered), 3) if failed else 0.0


def _percentiles(prefix: str, latency: Latency) -> Iterator[Number]:
    for name, value in latency.percentiles_ms.items():
        yield Number(f"{prefix}{name}_ms", value)


def _means(prefix: str, stages: Sequence[Stage]) -> Iterator[Number]:
    for stage in stages:
        yield Number(f"{prefix}{stage.name}_ms", stage.mean_ms)


def spreads(runs: Sequence[Run]) -> dict[str, Spread]:
    """Every number over these repeats, in the order of the first in which it occurs."""
    every = [numbers_of(run) for run in runs]
    names = dict.fromkeys(name for each in every for name in each)
    return {name: spread([each[name] for each in every if name in each]) for name in names}


def spread(values: Sequence[float | None]) -> Spread:
    """None is more than any number. The median of an even count is the mean of the two in the middle."""
    ordered = sorted(math.inf if value is None else value for value in values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return Spread(median=_finite((low + high) / 2), least=_finite(ordered[0]), most=_finite(ordered[-1]))


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
