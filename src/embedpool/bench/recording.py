"""From samples to histograms, percentiles and stages. Pure.

Latencies count from the instant at which a request was due. Counted from when it was sent, a load that cannot send while the
pool stands still would leave out just those requests that had to wait (coordinated omission).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from hdrh.histogram import HdrHistogram

from embedpool.bench.drive import ANSWERED, Sample
from embedpool.bench.results import Bulk, Interval, Latency, Queries, Stage

PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
LONGEST_US = 3_600_000_000
DIGITS = 3  # of a value: 0.1 %
MOST_INTERVALS, IN_INTERVAL = 60, 10


def histogram_of(ms: Iterable[float]) -> HdrHistogram:
    """Of milliseconds, in microseconds; values below one count as one."""
    found = HdrHistogram(1, LONGEST_US, DIGITS)
    for value in ms:
        found.record_value(min(max(1, round(value * 1e3)), LONGEST_US))
    return found


def merged(encoded: Iterable[str]) -> HdrHistogram:
    found = HdrHistogram(1, LONGEST_US, DIGITS)
    for each in encoded:
        found.decode_and_add(each.encode())
    return found


def encoded(histogram: HdrHistogram) -> str:
    return str(histogram.encode().decode())


def percentile_ms(answered: HdrHistogram, failed: int, percent: float) -> float | None:
    """The latency that `percent` of all requests did not exceed. Failed ones are slower than any: None if it falls on one."""
    count = answered.get_total_count()
    rank = max(1, math.ceil(percent / 100 * (count + failed) - 1e-9))
    if rank > count:
        return None
    value_us: int = answered.get_value_at_percentile(100 * rank / count)
    return round(value_us / 1e3, 3)


def percent_name(percent: float) -> str:
    return f"p{percent:g}"


def latency_of(samples: Sequence[Sample]) -> Latency:
    ms = [(s.done_s - s.due_s) * 1e3 for s in samples if s.outcome == ANSWERED]
    failed = Counter(s.outcome for s in samples if s.outcome != ANSWERED)
    found = histogram_of(ms)
    percentiles = {percent_name(p): percentile_ms(found, failed.total(), p) for p in PERCENTS}
    return Latency(
        answered=len(ms),
        failed=dict(failed),
        percentiles_ms=percentiles | {"max": percentile_ms(found, failed.total(), 100)},
        mean_ms=round(sum(ms) / len(ms), 3) if ms else None,
        histogram=encoded(found),
    )


def queries_of(samples: Sequence[Sample], begin_s: float, end_s: float) -> Queries:
    """Of the requests that were due between these instants. Rates of answers are of those that came between them."""
    due = [s for s in samples if begin_s <= s.due_s < end_s]
    came = [s for s in samples if s.outcome == ANSWERED and begin_s <= s.done_s < end_s]
    late = histogram_of((s.sent_s - s.due_s) * 1e3 for s in due)
    answered = [s for s in due if s.outcome == ANSWERED]
    seconds = end_s - begin_s
    return Queries(
        offered_per_s=round(len(due) / seconds, 2),
        answered_per_s=round(len(came) / seconds, 2),
        tokens_per_s=round(sum(s.tokens for s in came) / seconds, 1),
        latency=latency_of(due),
        stages=_stages(answered, with_late=True) if answered else (),
        late_p50_ms=percentile_ms(late, 0, 50) or 0.0 if due else 0.0,
        late_p99_ms=percentile_ms(late, 0, 99) or 0.0 if due else 0.0,
    )


def bulk_of(samples: Sequence[Sample], begin_s: float, end_s: float) -> Bulk:
    """Work done between these instants; latencies of all requests that were open at some time between them."""
    parts = [(s, share_within(s, begin_s, end_s)) for s in samples if s.outcome == ANSWERED]
    within = [s for s in samples if s.done_s >= begin_s and s.sent_s < end_s]
    answered = [s for s in within if s.outcome == ANSWERED]
    seconds = end_s - begin_s
    return Bulk(
        texts_per_s=round(sum(s.rows * part for s, part in parts) / seconds, 2),
        tokens_per_s=round(sum(s.tokens * part for s, part in parts) / seconds, 1),
        latency=latency_of(within),
        stages=_stages(answered, with_late=False) if answered else (),
    )


def share_within(sample: Sample, begin_s: float, end_s: float) -> float:
    """The part of a request's time, from sending to its end, that lies between two instants."""
    lasting_s = sample.done_s - sample.sent_s
    within_s = min(sample.done_s, end_s) - max(sample.sent_s, begin_s)
    return max(0.0, within_s) / lasting_s if lasting_s > 0 else float(begin_s <= sample.done_s < end_s)


def _stages(answered: Sequence[Sample], *, with_late: bool) -> tuple[Stage, ...]:
    """`late` is the load's own; `deliver` is what is left of the client's time: messages, the router, the loop of the load. For
    bulk requests the pool's times are sums over jobs that ran side by side, so nothing can be said of what is left."""
    ms: dict[str, list[float]] = {"late": [(s.sent_s - s.due_s) * 1e3 for s in answered]} if with_late else {}
    ms["queue"] = [s.queue_ms for s in answered]
    ms["tokenize"] = [s.tokenize_ms for s in answered]
    ms["run"] = [s.run_ms for s in answered]
    if with_late:
        ms["deliver"] = [max(0.0, (s.done_s - s.sent_s) * 1e3 - s.queue_ms - s.tokenize_ms - s.run_ms) for s in answered]
    return tuple(_stage(name, values) for name, values in ms.items())


def _stage(name: str, ms: Sequence[float]) -> Stage:
    found = histogram_of(ms)
    p50, p95 = percentile_ms(found, 0, 50), percentile_ms(found, 0, 95)
    assert p50 is not None and p95 is not None
    return Stage(name=name, mean_ms=round(sum(ms) / len(ms), 4), p50_ms=p50, p95_ms=p95, histogram=encoded(found))


def timeline_of(queries: Sequence[Sample], bulk: Sequence[Sample], begin_s: float, end_s: float) -> tuple[Interval, ...]:
    """The time between these instants in pieces, at most MOST_INTERVALS and few enough for some requests to be in each."""
    count = max(1, min(MOST_INTERVALS, len(queries or bulk) // IN_INTERVAL))
    step_s = (end_s - begin_s) / count
    of_interval: list[list[Sample]] = [[] for _ in range(count)]
    for sample in queries or bulk:
        i = int(((sample.due_s if queries else sample.done_s) - begin_s) // step_s)
        if 0 <= i < count:
            of_interval[i].append(sample)
    work = [s for s in bulk if s.outcome == ANSWERED]
    return tuple(_interval(i * step_s, step_s, found, work, begin_s) for i, found in enumerate(of_interval))


def _interval(at_s: float, step_s: float, samples: Sequence[Sample], work: Sequence[Sample], begin_s: float) -> Interval:
    latency = latency_of(samples)
    tokens = sum(s.tokens * share_within(s, begin_s + at_s, begin_s + at_s + step_s) for s in work)
    return Interval(
        at_s=round(at_s, 3),
        seconds=round(step_s, 4),
        answered=latency.answered,
        failed=sum(latency.failed.values()),
        p50_ms=latency.percentiles_ms["p50"],
        p95_ms=latency.percentiles_ms["p95"],
        max_ms=latency.percentiles_ms["max"],
        bulk_tokens_per_s=round(tokens / step_s, 1),
    )
