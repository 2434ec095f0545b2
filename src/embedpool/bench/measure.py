"""One run: loads begin together, warm up, and the time is taken between two instants; what they saw becomes a Run.

    begin ── warm-up ── |── measured ──| … the last requests are answered

Queries belong to the run by the instant at which they were due; processor time is taken at both instants, memory at the second.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from embedpool.bench import RunFailed
from embedpool.bench.drive import ANSWERED, NO_ANSWER, Sample
from embedpool.bench.load import Queries as QueryOrder
from embedpool.bench.loads import LONGEST_BULK_S, Load, loads, wait_until
from embedpool.bench.machine import Status, read_status
from embedpool.bench.processes import Used, other_cores, parts, used
from embedpool.bench.recording import bulk_of, queries_of, timeline_of
from embedpool.bench.results import Doubt, Queries, Run, Usage
from embedpool.bench.texts import Texts
from embedpool.bench.workload import Workload
from embedpool.client import Client
from embedpool.errors import EmbedpoolError

LEAD_S = 0.1  # between telling the loads to begin and the beginning
OF_LOAD = frozenset({"overloaded", "expired", NO_ANSWER})  # what too much work leads to; other codes are faults
LATE_MS, LATE_SHARE = 2.0, 0.1
STATUS_S = 30.0  # a busy router answers in its turn
STRANGERS, STRANGERS_SHARE = 5, 0.05
OTHERS_CORES = 0.2


@dataclass(frozen=True, slots=True)
class _Reading:
    """Of one instant."""

    status: Status
    used: Used


def measure(pool: Client, workload: Workload, texts: Texts, repeat: int, passed: Callable[[float], None]) -> Run:
    """`passed` is told the seconds that went by, for a progress bar. Raises RunFailed."""
    begin_s, end_s = workload.warmup_s, workload.warmup_s + workload.seconds
    with loads(pool.endpoint, workload, texts, repeat) as started:
        begin_at = time.monotonic() + LEAD_S
        for load in started:
            load.begin(begin_at)
        _wait(begin_at + begin_s, started, passed)
        before = _read(pool, started)
        _wait(begin_at + end_s, started, passed)
        after = _read(pool, started)
        memory_too = parts(before.used, after.used)
        within_s = max(LONGEST_BULK_S, workload.timeout_s) + 10.0
        samples = {load: load.saw(within_s) for load in started}
    queries = [s for load in started if isinstance(load.order, QueryOrder) for s in samples[load]]
    bulk = [s for load in started if not isinstance(load.order, QueryOrder) for s in samples[load]]
    ours = sum(s.outcome == ANSWERED and begin_s <= s.done_s < end_s for s in (*queries, *bulk))
    _check("queries", queries)
    _check("bulk requests", bulk)
    if workload.processes and not any(begin_s <= s.due_s < end_s for s in queries):
        raise RunFailed(f"no query was due in {workload.seconds:g} s: measure longer, or ask for more per second")
    found = queries_of(queries, begin_s, end_s) if workload.processes else None
    usage = Usage(
        parts=memory_too,
        load_cores=round((after.used.loads - before.used.loads) / (after.used.at - before.used.at), 3),
        other_cores=other_cores(before.used, after.used),
        other_requests=_others(before.status, after.status, ours),
        alike=_alike(before.status, after.status),
    )
    return Run(
        repeat=repeat,
        rate=workload.rate,
        queries=found,
        bulk=bulk_of(bulk, begin_s, end_s) if workload.bulk_clients else None,
        usage=usage,
        timeline=timeline_of(queries, bulk, begin_s, end_s),
        doubts=tuple(doubts(found, usage, ours)),
    )


def _wait(at: float, started: Sequence[Load], passed: Callable[[float], None]) -> None:
    for seconds in wait_until(at, started):
        passed(seconds)


def _read(pool: Client, started: Sequence[Load]) -> _Reading:
    try:
        status = read_status(pool.status(timeout_s=STATUS_S))
    except EmbedpoolError as error:
        raise RunFailed(f"the pool does not say how it is any more: {error.message}") from error
    return _Reading(status, used(status.supervisor, [load.pid for load in started], time.monotonic()))


def _check(what: str, samples: Sequence[Sample]) -> None:
    """Raises RunFailed where nothing was answered, unless it is because too much was asked: that is a result."""
    codes = Counter(s.outcome for s in samples)
    if codes and not codes[ANSWERED] and not OF_LOAD.issuperset(codes):
        raise RunFailed(f"no {what} were answered: {', '.join(f'{count} {code}' for code, count in codes.most_common())}")


def _others(before: Status, after: Status, ours: int) -> int | None:
    """Requests that the pool answered and nobody here asked; None if its router was replaced meanwhile, and counts from 0."""
    if after.uptime_s < before.uptime_s:
        return None
    return max(0, after.counters.answered - before.counters.answered - ours)


def _alike(before: Status, after: Status) -> int | None:
    return None if after.uptime_s < before.uptime_s else after.counters.alike - before.counters.alike


# ── what speaks against a run ────────────────────────────────────────────────────────────────────────────────────────


def is_late(queries: Queries) -> bool:
    """Whether the load itself sent so late that its latencies say more of it than of the pool."""
    p99_ms = queries.latency.percentiles_ms["p99"]
    return queries.late_p99_ms > max(LATE_MS, LATE_SHARE * (p99_ms or 0.0))


def doubts(queries: Queries | None, usage: Usage, ours: int) -> Iterator[Doubt]:
    """For whoever reads the numbers."""
    if queries is not None and is_late(queries):
        late = f"1 in 100 queries was sent more than {queries.late_p99_ms:.1f} ms after it was due"
        yield Doubt(about="late", said=f"the load itself was late: {late}, which is part of the latencies")
    if usage.other_requests is None:
        yield Doubt(about="replaced", said="the pool's router was replaced in the middle")
    elif usage.other_requests > max(STRANGERS, STRANGERS_SHARE * ours):
        yield Doubt(about="others", said=f"the pool answered {usage.other_requests} requests of others meanwhile")
    if usage.alike:
        yield Doubt(about="alike", said=f"{usage.alike} texts were equal to others that waited, and cost nothing")
    if usage.other_cores is not None and usage.other_cores > OTHERS_CORES:
        yield Doubt(about="busy", said=f"other programs, or the host, used {usage.other_cores:.1f} cores meanwhile")
