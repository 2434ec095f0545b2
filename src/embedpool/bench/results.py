"""What a benchmark leaves, and the form of its JSON file. Plain records.

All latencies are in milliseconds. A histogram is HdrHistogram's own encoding (V2, base64) of microseconds, which its tools
read.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from embedpool.bench import RunFailed
from embedpool.errors import ConfigError

FORMAT = 1


class _Result(Struct, frozen=True, kw_only=True):
    """Part of the file: an object with these keys."""


class Latency(_Result, frozen=True):
    """Of requests: `percentiles_ms` are of all of them, None where a percentile falls on one that got no vectors; those count
    as slower than all others. `failed` counts them by code. `histogram` and `mean_ms` are of the answered."""

    answered: int
    failed: dict[str, int]
    percentiles_ms: dict[str, float | None]
    mean_ms: float | None
    histogram: str


class Stage(_Result, frozen=True):
    """A part of the way of the answered requests."""

    name: str
    mean_ms: float
    p50_ms: float
    p95_ms: float
    histogram: str


class Queries(_Result, frozen=True):
    """Requests of one text. `latency` from the instant at which a request was due to its vector's being in its caller's
    hands."""

    offered_per_s: float
    answered_per_s: float
    tokens_per_s: float
    latency: Latency
    stages: tuple[Stage, ...]
    late_p50_ms: float  # how much later than due the load sent them
    late_p99_ms: float


class Bulk(_Result, frozen=True):
    """Requests of many texts, each client's next one after its last one's end. `latency` from sending to having all vectors, of
    those open at some time within what was measured. One that was open at an edge counts as work by the part of its time
    within."""

    texts_per_s: float
    tokens_per_s: float
    latency: Latency
    stages: tuple[Stage, ...]


class Part(_Result, frozen=True):
    """Processes of one kind: how many, cores that they kept busy on average, and memory (PSS: shared pages by their share);
    None where the kernel does not let us read it."""

    role: str
    processes: int
    cores: float | None
    pss_bytes: int | None


class Usage(_Result, frozen=True):
    """What the run used. `load_cores`: of the processes that asked; `other_cores`: of all programs that were not part of it,
    and of what the host took (steal). `other_requests`: answered by the pool, but not ours; None where it cannot be told."""

    parts: tuple[Part, ...]
    load_cores: float
    other_cores: float | None
    other_requests: int | None
    alike: int | None  # texts that were computed once for several requests


class Interval(_Result, frozen=True):
    """A piece of the run's timeline, `at_s` after its beginning: of the queries that were due in it (or bulk requests that
    ended in it), and of the bulk work done in it."""

    at_s: float
    seconds: float
    answered: int
    failed: int
    p50_ms: float | None
    p95_ms: float | None
    max_ms: float | None
    bulk_tokens_per_s: float


class Doubt(_Result, frozen=True):
    """Why a run may not mean what it seems to mean: `about` is late, replaced, others, alike or busy, `said` the sentence."""

    about: str
    said: str


class Run(_Result, frozen=True):
    """One repeat."""

    repeat: int
    rate: float | None
    queries: Queries | None
    bulk: Bulk | None
    usage: Usage
    timeline: tuple[Interval, ...]
    doubts: tuple[Doubt, ...]


class Spread(_Result, frozen=True):
    """A number over the repeats: the median, the least and the most; None where it is a latency that no answer has."""

    median: float | None
    least: float | None
    most: float | None


class Point(_Result, frozen=True):
    """The repeats at one rate (None: bulk work alone), and every number's spread over them (see numbers.py)."""

    rate: float | None
    numbers: dict[str, Spread]
    runs: tuple[Run, ...]


class Tried(_Result, frozen=True):
    """A rate of the search, and each repeat's verdict: met, missed, or late (the load was)."""

    rate: float
    verdicts: tuple[str, ...]


class Objective(_Result, frozen=True):
    """`rate` is the highest one found that meets the objective in most repeats, None if none did; `ended_by` what the next
    higher one failed by: slo, load (the load was late before the pool was), or runs (there was no more time)."""

    asked: str
    rate: float | None
    ended_by: str
    tried: tuple[Tried, ...]


class Machine(_Result, frozen=True):
    processor: str
    cores: int
    memory_gb: float
    kernel: str
    python: str
    packages: dict[str, str]


class Measured(_Result, frozen=True):
    """The pool: what it serves and how it is laid out."""

    endpoint: str
    version: str
    model: str
    dim: int
    precision: str
    fingerprint: str
    workers: int
    cores: tuple[str, ...]


class Settings(_Result, frozen=True):
    workload: str
    rates: tuple[float, ...]
    arrivals: str
    clients: int
    rows: int
    warmup_s: float
    seconds: float
    repeats: int
    timeout_s: float
    texts: str
    seed: int


class Report(_Result, frozen=True):
    """The file."""

    format: int
    date: str
    machine: Machine
    pool: Measured
    settings: Settings
    points: tuple[Point, ...]
    objective: Objective | None = None

    @property
    def chosen(self) -> Point:
        """The point that is looked at closely: the one that the objective found, otherwise the one with most load."""
        held = self.objective.rate if self.objective else None
        return next((point for point in self.points if point.rate == held), self.points[-1])


def write(report: Report, path: str) -> None:
    """Raises RunFailed where it cannot be written."""
    try:
        Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except OSError as error:
        raise RunFailed(f"{path} cannot be written: {error.strerror}") from error


def read(path: str) -> Report:
    """Raises ConfigError for what is no such file."""
    try:
        report = msgspec.json.decode(Path(path).read_bytes(), type=Report)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no result of `embedpool bench --json`: {error}") from error
    if report.format != FORMAT:
        raise ConfigError(f"{path} has the format {report.format}; this version of embedpool reads {FORMAT}")
    return report
