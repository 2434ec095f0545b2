"""What is asked when: arrival instants, and which text comes next. Pure: the same seed gives the same load on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from embedpool.errors import ConfigError

Kind = Literal["query", "bulk", "mixed"]
Arrivals = Literal["poisson", "fixed"]
MOST_RATES = 100  # of one sweep
HIGHEST_PER_S = 1e6
PER_PROCESS_PER_S = 2000.0  # of queries: 0.2 ms of processor time each, so twice as many would make it late by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one run asks of the pool. `clients` are connections of queries, or clients with bulk work; 0: as many as are needed.

    `rate` is that of `query` and `mixed`, in requests per second; None for `bulk`. `rows` are the texts of one bulk request.
    """

    kind: Kind
    rate: float | None
    arrivals: Arrivals = "poisson"
    clients: int = 0
    rows: int = 64
    warmup_s: float = 2.0
    seconds: float = 10.0
    timeout_s: float = 10.0
    seed: int = 1

    @property
    def connections(self) -> int:
        """Of queries."""
        if self.rate is None:
            return 0
        asked = self.clients if self.kind == "query" else 0
        return asked or -int(-self.rate // PER_PROCESS_PER_S)

    @property
    def processes(self) -> int:
        """That make the queries."""
        return 0 if self.rate is None else min(self.connections, -int(-self.rate // PER_PROCESS_PER_S))

    @property
    def bulk_clients(self) -> int:
        return 0 if self.kind == "query" else self.clients or 2


def schedule(per_s: float, seconds: float, arrivals: Arrivals, seed: int) -> list[float]:
    """Seconds from the beginning at which requests are due. `poisson`: as independent users ask, with exponentially distributed
    gaps; `fixed`: equal gaps, the first request after half a gap."""
    if arrivals == "fixed":
        return [(i + 0.5) / per_s for i in range(round(per_s * seconds))]
    rng, found, at = random.Random(seed), list[float](), 0.0
    while (at := at + rng.expovariate(per_s)) < seconds:
        found.append(at)
    return found


def share(texts: Sequence[str], part: int, parts: int) -> list[str]:
    """Those of one stream among several: no text is in two of them. Every stream has at least one, made different if need
    be."""
    return list(texts[part::parts]) or [f"{texts[part % len(texts)]} [{part}]"]


def text_at(texts: Sequence[str], i: int) -> str:
    """The i-th text of an endless row in which no two are equal: later rounds end in their number.

    The pool computes equal texts that wait at the same time once for all; whoever measures with them measures something else.
    """
    round_number, place = divmod(i, len(texts))
    return f"{texts[place]} ({round_number})" if round_number else texts[place]


def parse_rates(text: str) -> tuple[float, ...]:
    """`10:200:20` is from 10 to at most 200 in steps of 20; `10,50,100` is a list. Raises ConfigError."""
    try:
        if ":" in text:
            low, high, step = (float(part) for part in text.split(":"))
            count = int((high - low) / step + 1e-9) + 1
            rates = [low + i * step for i in range(min(count, MOST_RATES + 1))]
        else:
            rates = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ConfigError(f"--rates is FROM:TO:STEP or a list like 10,50,100, not {text!r}") from None
    if not rates or len(rates) > MOST_RATES or not all(0 < rate <= HIGHEST_PER_S for rate in rates):
        raise ConfigError(f"--rates {text!r} does not name 1 to {MOST_RATES} rates above 0 and up to {HIGHEST_PER_S:,.0f}/s")
    return tuple(dict.fromkeys(rates))
