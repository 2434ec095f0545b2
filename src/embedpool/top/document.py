"""The pool's status document as records. Pure.

All that an older router does not say has a default, and what a newer one says besides is ignored. The names are those of
docs/protocol.md, "Status".
"""

from __future__ import annotations

import msgspec


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """`counts` per bucket, one more than there are bounds: the last is of what was above all of them."""

    le_ms: tuple[float, ...]
    counts: tuple[int, ...]
    sum_ms: float = 0.0


class Class(msgspec.Struct, frozen=True, kw_only=True):
    """Interactive requests, or bulk, since the router started."""

    requests: int = 0
    answered: int = 0
    rows: int = 0
    tokens: int = 0
    refused: dict[str, int] = {}
    stages: dict[str, Histogram] = {}


class Runs(msgspec.Struct, frozen=True, kw_only=True):
    """Model runs since the router started; `padded_tokens` is what was computed for `tokens` real ones."""

    count: int = 0
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0


class Running(msgspec.Struct, frozen=True, kw_only=True):
    rows: int = 0
    ms: float = 0.0
    interactive: bool = False


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """`busy_s`: with a job in hand, since this process began; None where the router does not say."""

    index: int
    pid: int = 0
    cores: tuple[int, ...] = ()
    state: str = ""
    restarts: int = 0
    jobs_done: int = 0
    rows_done: int = 0
    busy_s: float | None = None
    running: Running | None = None


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    requests: int = 0
    rows: int = 0
    bytes: int = 0
    estimated_ms: float = 0.0
    oldest_ms: float | None = None


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    open: int = 0
    requests_open: int = 0
    segments: int = 0
    segment_bytes: int = 0


class Reload(msgspec.Struct, frozen=True, kw_only=True):
    count: int = 0
    state: str = ""
    reason: str = ""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    dim: int = 0
    precision: str = ""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    error: float | None = None


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    requests: int = 0
    answered: int = 0
    refused: dict[str, int] = {}
    rows: int = 0
    tokens: int = 0


class Document(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    reason: str = ""
    uptime_s: float = 0.0
    pool: dict[str, str] = {}
    model: Model = Model()
    reload: Reload = Reload()
    workers: tuple[Worker, ...] = ()
    queue: Queue = Queue()
    sessions: Sessions = Sessions()
    cost: Cost = Cost()
    counters: Counters = Counters()
    classes: dict[str, Class] | None = None
    runs: Runs | None = None


def read(status: str | bytes) -> Document:
    """Raises msgspec.ValidationError or DecodeError, both ValueErrors, for what is no status of a pool."""
    return msgspec.json.decode(status, type=Document)
