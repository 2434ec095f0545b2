"""`--compare` on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from embedpool.bench.compare import Pair, Row, differences, pairs
from embedpool.bench.report import NO_ANSWER
from embedpool.bench.results import Report, Spread
from embedpool.errors import ConfigError

STYLES = {"better": "green", "worse": "red", "differs": "yellow"}


def show_comparison(a: Report, b: Report, console: Console) -> None:
    """Raises ConfigError where nothing in the two can be compared."""
    found = pairs(a, b)
    if not found:
        raise ConfigError("the two results have no rate in common")
    if unlike := differences(a, b):
        console.print(Text("not alike (A | B)", style="bold yellow"))
        for line in unlike:
            console.print(Text(f"  {line}", style="yellow"))
        console.print()
    for pair in found:
        console.print(_table(pair))
        if pair.together:
            console.print(Text(_together(pair), style="dim"))
        console.print()
    console.print(
        Text(
            "Medians, with the least and the most of the repeats; the ratio is B to A. Better or worse: all repeats of one side"
            " lie on one side of the other's. Within noise: they overlap.",
            style="dim",
        )
    )


def _table(pair: Pair) -> Table:
    repeats = f"{len(pair.a.runs)} and {len(pair.b.runs)} repeats: by chance alone, 1 row in {1 / pair.chance:.0f} lies apart"
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"{_at(pair)}{repeats}", title_justify="left")
    table.title_style = "bold cyan"
    for name in ("", "A", "B", "B / A", ""):
        table.add_column(name, justify="right" if "A" in name or "B" in name else "left", no_wrap=True)
    for row in pair.rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, _spread(row.a), _spread(row.b), ratio, _verdict(row))
    return table


def _at(pair: Pair) -> str:
    if pair.a.rate is None and pair.b.rate is None:
        return ""
    rates = [f"{rate:g}/s" if rate is not None else "bulk" for rate in dict.fromkeys((pair.a.rate, pair.b.rate))]
    return f"{' | '.join(rates)}, "


def _verdict(row: Row) -> Text:
    return Text(row.verdict, style=STYLES.get(row.verdict, "dim"))


def _spread(found: Spread) -> Text:
    text = Text(_number(found.median), style="bold")
    if found.least != found.most:
        text.append(f" ({_number(found.least)}–{_number(found.most)})", style="dim not bold")
    return text


def _number(value: float | None) -> str:
    if value is None:
        return NO_ANSWER
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _together(pair: Pair) -> str:
    parts = (f"{each.name} {_number(each.a_ms)} | {_number(each.b_ms)}" for each in pair.together)
    return f"all repeats' queries together, ms (A | B): {', '.join(parts)}"
