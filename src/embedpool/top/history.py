"""What the last minutes looked like: ring buffers, and the small pictures that are made of them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from embedpool.top.view import Reading, Snapshot, snapshot

POINTS = 600  # one per interval: more than any terminal has columns
WINDOW_S = 10.0  # of percentiles: long enough for a few requests per second to have some, short enough to be now
BARS = " ▁▂▃▄▅▆▇█"
BARS_ASCII = " ..::-=+#"  # where the terminal's encoding has no blocks; as many

Values = Sequence[float | None]


def _ring() -> deque[float | None]:
    return deque(maxlen=POINTS)


@dataclass(slots=True)
class History:
    """One point per interval in each series, the newest last; None where nothing is known, as while the pool is away.
    Latencies are the 95th percentiles of one interval each."""

    rows: deque[float | None] = field(default_factory=_ring)
    tokens: deque[float | None] = field(default_factory=_ring)
    requests: deque[float | None] = field(default_factory=_ring)
    refused: deque[float | None] = field(default_factory=_ring)
    busy: deque[float | None] = field(default_factory=_ring)
    waiting: deque[float | None] = field(default_factory=_ring)
    interactive_ms: deque[float | None] = field(default_factory=_ring)
    bulk_ms: deque[float | None] = field(default_factory=_ring)
    readings: deque[Reading] = field(default_factory=deque)  # of the last WINDOW_S, and one before

    def observe(self, reading: Reading) -> Snapshot:
        """Adds a reading's points; gives what it shows, against the last one and, for percentiles, those of WINDOW_S."""
        before = self.readings[-1] if self.readings else None
        if before is not None:
            self._add(snapshot(reading, before))
        while len(self.readings) > 1 and self.readings[1].at <= reading.at - WINDOW_S:
            self.readings.popleft()
        seen = snapshot(reading, before, self.readings[0] if self.readings else None)
        self.readings.append(reading)
        return seen

    def missed(self) -> None:
        """The pool did not answer: a gap in every series."""
        self._add(None)

    def _add(self, seen: Snapshot | None) -> None:
        rates = seen.rates if seen else None
        self.rows.append(rates.rows if rates else None)
        self.tokens.append(rates.tokens if rates else None)
        self.requests.append(rates.requests if rates else None)
        self.refused.append(rates.refused if rates else None)
        self.busy.append(seen.busy if seen else None)
        self.waiting.append(float(seen.queue.rows) if seen else None)
        self.interactive_ms.append(seen.latency("interactive").p95 if seen else None)
        self.bulk_ms.append(seen.latency("bulk").p95 if seen else None)


def chart(values: Values, width: int, height: int = 1, *, top: float | None = None, bars: str = BARS) -> list[str]:
    """`height` lines of exactly `width` columns, the newest value at the right; a line is eight steps high. The highest step is
    `top`, or the greatest value shown. 0 is a thin line, so that it differs from a gap (None)."""
    shown = list(values)[-width:] if width > 0 else []
    known = [value for value in shown if value is not None]
    most = top or max(known, default=0.0)
    steps = len(bars) - 1
    levels = [_level(value, most, steps * height) for value in [None] * (max(0, width) - len(shown)) + shown]
    return ["".join(bars[min(steps, max(0, level - row * steps))] for level in levels) for row in reversed(range(height))]


def _level(value: float | None, most: float, steps: int) -> int:
    if value is None:
        return 0
    return max(1, min(steps, round(value / most * steps))) if most > 0 else 1
