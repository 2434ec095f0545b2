"""A snapshot as a screen of so many columns and lines. Pure.

From the top: the title (with what is wrong), throughput beside latency, the queue and the sessions, charts where there is room,
the workers. 80x24 shows six workers; what is smaller loses the frames first, then lines from below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from embedpool.top import panels, words
from embedpool.top.history import WINDOW_S, History, Values, chart
from embedpool.top.panels import CHART, LABEL, LOOK, Look, joined
from embedpool.top.view import Snapshot

LEAST_COLUMNS, LEAST_LINES = 72, 22  # for frames
FRAME = 2  # lines, and with its padding 4 columns
CHARTS_LEAST, CHARTS_MOST = 6, 14  # lines of the row of charts, frame included
CHARTS_FROM = 2  # points
LONG_TITLE = 32  # columns of a chart's frame
CHARTS = (  # with the greatest value shown; for a narrow frame, and a wide one
    ("tokens/s up to {}", "tokens/s up to {}", "tokens", CHART),
    ("p95 up to {} ms", "interactive p95 up to {}", "interactive", "cyan"),
    ("waiting up to {}", "texts waiting, up to {}", "waiting", "yellow"),
)
KEYS = "q quits"


def screen(seen: Snapshot, history: History, width: int, height: int, *, away: str = "", look: Look = LOOK) -> RenderableType:
    """At most `height` lines, each at most `width` columns. `away`: why there is nothing newer than this."""
    series = _series(history)
    if width < LEAST_COLUMNS or height < LEAST_LINES:
        return joined(_bare(seen, series, width, away, look)[: max(1, height)], width, look)
    head = panels.title(seen, away, width)[:4]
    middle, facts = _middle(seen, series, width, look), _framed("now", panels.facts(seen, series, width - 4, look), width, look)
    left = height - len(head) - 9 - 5  # lines for charts and workers
    need = len(seen.workers) + 1 + FRAME
    tall = min(CHARTS_MOST, left - max(need, 6))
    parts: list[RenderableType] = [joined(head, width, look), middle, facts]
    if tall >= CHARTS_LEAST and len(history.tokens) >= CHARTS_FROM:
        parts.append(_charts(series, width, tall - FRAME, look))
        left -= tall
    rows = panels.workers(seen.workers, width - 4, max(1, left - FRAME - 1), look)
    parts.append(_framed(words.many(len(seen.workers), "worker"), rows, width, look, KEYS if look.live else ""))
    return Group(*parts)


def _series(history: History) -> dict[str, Values]:
    return {
        "rows": history.rows,
        "tokens": history.tokens,
        "requests": history.requests,
        "refused": history.refused,
        "busy": history.busy,
        "waiting": history.waiting,
        "interactive": history.interactive_ms,
        "bulk": history.bulk_ms,
    }


def _framed(name: str, lines: Sequence[Text], width: int, look: Look, below: str = "") -> Panel:
    return Panel(
        joined(lines, width - 4, look),
        title=Text(name, LABEL),
        title_align="left",
        subtitle=Text(below, "dim") if below else None,
        subtitle_align="right",
        box=box.ROUNDED,
        border_style="bright_black",
        width=width,
        height=len(lines) + FRAME,
    )


def _beside(panels_: Sequence[Panel]) -> Table:
    row = Table.grid(padding=0)
    row.add_row(*panels_)
    return row


def _middle(seen: Snapshot, series: dict[str, Values], width: int, look: Look) -> Table:
    left = (width - 6) // 2  # latency has the wider table
    right = width - left
    return _beside(
        (
            _framed("throughput", panels.throughput(seen, series, left - 4, look), left, look),
            _framed(f"latency, last {WINDOW_S:.0f} s", panels.latency(seen, series, right - 4, look), right, look),
        )
    )


def _charts(series: dict[str, Values], width: int, lines: int, look: Look) -> Table:
    """Larger pictures of the last minutes, side by side."""
    found, left = [], width
    for i, (short, long, key, style) in enumerate(CHARTS):
        columns = left // (len(CHARTS) - i)
        left -= columns
        most = max((value for value in list(series[key])[-(columns - 4) :] if value is not None), default=None)
        drawn = [Text(line, style) for line in chart(series[key], columns - 4, lines, bars=look.bars)]
        name = (long if columns >= LONG_TITLE else short).format(words.count(most))
        found.append(_framed(name, drawn, columns, look))
    return _beside(found)


def _bare(seen: Snapshot, series: dict[str, Values], width: int, away: str, look: Look) -> list[Text]:
    """Without frames: for small windows, the most important first."""
    return [
        *panels.title(seen, away, width),
        *panels.throughput(seen, series, width, look)[:3],
        *panels.latency(seen, series, width, look)[:2],
        *panels.facts(seen, series, width, look),
        *panels.workers(seen.workers, width, max(1, len(seen.workers)), look),
    ]


def waiting(reason: str, width: int, height: int, look: Look = LOOK) -> RenderableType:
    """Before the first answer: why there is none yet."""
    head = Text(" embedpool ", "bold reverse")
    said = [Text(line) for line in textwrap.wrap(reason or "asking the pool", max(1, width))]
    return joined([head, *said, Text(KEYS, "dim")][: max(1, height)], width, look)
