"""What a pool did between two status documents: rates, percentiles, shares. Pure.

Rules
1. A counter's rate is its growth over the growth of the router's own uptime: the way to us and how long we slept do not count.
2. A router that was replaced counts from 0: its rates are those since its start (`is_same_router`).
3. What is not known is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from embedpool.top.document import Class, Document, Histogram, Queue, Reload, Running, Runs, Sessions, Worker

CLASSES = ("interactive", "bulk")
STAGES = ("total", "queue", "run")
CLOCK_S = 2.5  # by how much a status may be late, and so its router seem to have started later: what asking may take, and some


@dataclass(frozen=True, slots=True)
class Reading:
    """A status document, when it came, and bytes of memory by process id (of those that can be seen from here)."""

    at: float
    document: Document
    memory: Mapping[int, int]

    @property
    def started_at(self) -> float:
        return self.at - self.document.uptime_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Per second."""

    requests: float
    rows: float
    tokens: float
    refused: float


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds; of nothing, None."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One class of requests. `stages` by name, those that the router tells of."""

    name: str
    requests: float | None
    rows: float | None
    stages: Mapping[str, Percentiles]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker. `busy` from 0 to 1, `memory` in bytes, `rows` per second."""

    index: int
    pid: int
    cores: tuple[int, ...]
    state: str
    restarts: int
    busy: float | None
    memory: int | None
    rows: float | None
    running: Running | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a screen shows of one moment. `padding` is the share of computed tokens that were none; `refused` by code since
    the router started, `refused_lately` in the last interval. `cost_error`: see docs/protocol.md."""

    state: str
    reason: str
    uptime_s: float
    endpoint: str
    plan: str
    model: str
    dim: int
    precision: str
    reload: Reload
    rates: Rates | None
    classes: tuple[Traffic, ...]
    tokens_per_run: float | None
    padding: float | None
    queue: Queue
    sessions: Sessions
    refused: Mapping[str, int]
    refused_lately: Mapping[str, int]
    cost_error: float | None
    workers: tuple[Seat, ...]

    @property
    def busy(self) -> float | None:
        """Mean share of the workers' time, 0 to 1."""
        shares = [worker.busy for worker in self.workers if worker.busy is not None]
        return sum(shares) / len(shares) if shares else None

    def latency(self, name: str, stage: str = "total") -> Percentiles:
        found = [traffic.stages.get(stage) for traffic in self.classes if traffic.name == name]
        return found[0] or Percentiles() if found else Percentiles()


def snapshot(now: Reading, before: Reading | None = None, since: Reading | None = None) -> Snapshot:
    """`before` is the reading for rates and shares; `since`, an earlier one, that for what needs many requests to be
    worth saying: percentiles and padding. None of them: what is true at one moment, no rates."""
    last = _origin(now, before)
    wide = _origin(now, since or before)
    doc = now.document
    span_s = doc.uptime_s - last.uptime_s if last else 0.0
    runs = _runs(doc.runs, wide.runs) if wide and doc.runs else None
    return Snapshot(
        state=doc.state,
        reason=doc.reason,
        uptime_s=doc.uptime_s,
        endpoint=doc.pool.get("endpoint", ""),
        plan=doc.pool.get("plan", ""),
        model=doc.model.name,
        dim=doc.model.dim,
        precision=doc.model.precision,
        reload=doc.reload,
        rates=_rates(doc, last, span_s) if last and span_s > 0 else None,
        classes=tuple(_traffic(name, doc, last, wide) for name in CLASSES if name in (doc.classes or {})),
        tokens_per_run=runs.tokens / runs.count if runs and runs.count else None,
        padding=max(0.0, 1 - runs.tokens / runs.padded_tokens) if runs and runs.padded_tokens else None,
        queue=doc.queue,
        sessions=doc.sessions,
        refused=doc.counters.refused,
        refused_lately=_grown(doc.counters.refused, last.counters.refused if last else doc.counters.refused),
        cost_error=doc.cost.error,
        workers=tuple(_seat(worker, now, last, span_s) for worker in doc.workers),
    )


def is_same_router(before: Reading, now: Reading) -> bool:
    """Whether counters go on: no router began between the two, and none has fallen."""
    if now.document.uptime_s < before.document.uptime_s or now.started_at - before.started_at > CLOCK_S:
        return False
    old, new = before.document.counters, now.document.counters
    return new.requests >= old.requests and new.answered >= old.answered and new.rows >= old.rows and new.tokens >= old.tokens


def _origin(now: Reading, before: Reading | None) -> Document | None:
    """What to count from: the earlier document, or the start of a router that was not there then."""
    if before is None:
        return None
    return before.document if is_same_router(before, now) else Document(state="starting")


def _rates(doc: Document, last: Document, span_s: float) -> Rates:
    new, old = doc.counters, last.counters
    return Rates(
        requests=(new.answered - old.answered) / span_s,
        rows=(new.rows - old.rows) / span_s,
        tokens=(new.tokens - old.tokens) / span_s,
        refused=sum(_grown(new.refused, old.refused).values()) / span_s,
    )


def _grown(new: Mapping[str, int], old: Mapping[str, int]) -> dict[str, int]:
    return {code: more for code, count in new.items() if (more := count - old.get(code, 0)) > 0}


def _traffic(name: str, doc: Document, last: Document | None, wide: Document | None) -> Traffic:
    new = (doc.classes or {})[name]
    old = (last.classes or {}).get(name, Class()) if last else new
    first = (wide.classes or {}).get(name, Class()) if wide else new
    span_s = doc.uptime_s - last.uptime_s if last else 0.0
    return Traffic(
        name=name,
        requests=max(0, new.answered - old.answered) / span_s if span_s > 0 else None,
        rows=max(0, new.rows - old.rows) / span_s if span_s > 0 else None,
        stages={stage: percentiles(found, first.stages.get(stage)) for stage, found in new.stages.items()},
    )


def _runs(new: Runs, old: Runs | None) -> Runs:
    old = old or Runs()
    return Runs(
        count=new.count - old.count,
        rows=new.rows - old.rows,
        tokens=new.tokens - old.tokens,
        padded_tokens=new.padded_tokens - old.padded_tokens,
    )


def _seat(worker: Worker, now: Reading, last: Document | None, span_s: float) -> Seat:
    """A worker that is a new process since then counts from its own start, which is later: its share is unknown until the next
    reading."""
    old = next((w for w in last.workers if w.pid == worker.pid), None) if last else None
    busy = rows = None
    if old is not None and span_s > 0:
        rows = max(0, worker.rows_done - old.rows_done) / span_s
        if worker.busy_s is not None and old.busy_s is not None:
            busy = min(1.0, max(0.0, (worker.busy_s - old.busy_s) / span_s))
    return Seat(
        index=worker.index,
        pid=worker.pid,
        cores=worker.cores,
        state=worker.state,
        restarts=worker.restarts,
        busy=busy,
        memory=now.memory.get(worker.pid),
        rows=rows,
        running=worker.running,
    )


def percentiles(new: Histogram, old: Histogram | None = None) -> Percentiles:
    """Of what came between two histograms; since the first, if there is no earlier one or its buckets are others."""
    counts = list(new.counts)
    if old is not None and old.le_ms == new.le_ms and len(old.counts) == len(counts):
        counts = [max(0, n - o) for n, o in zip(counts, old.counts, strict=True)]
    return Percentiles(*(quantile(new.le_ms, counts, share) for share in (0.5, 0.95, 0.99)))


def quantile(bounds: tuple[float, ...], counts: list[int], share: float) -> float | None:
    """Milliseconds that `share` of the counts are not above, taking those of a bucket as evenly spread over it (as PromQL's
    histogram_quantile does); of the last bucket, which has no end, its beginning. None for no counts."""
    total = sum(counts)
    if not total or not bounds:
        return None
    wanted, below, start = share * total, 0, 0.0
    for end, count in zip(bounds, counts, strict=False):
        if count and below + count >= wanted:
            return start + (end - start) * (wanted - below) / count
        below, start = below + count, end
    return bounds[-1]
