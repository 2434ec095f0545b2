"""A benchmark on the terminal: what was measured between which two instants, the numbers, and what speaks against them.

Every number is the median of the repeats, with the least and the most below it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from embedpool.bench.numbers import spread
from embedpool.bench.results import Latency, Objective, Point, Report, Run, Spread

NO_ANSWER = "none"  # a percentile that falls on requests without vectors
STAGES = ("late", "queue", "tokenize", "run", "deliver")
COLORS = {"late": "red", "queue": "yellow", "tokenize": "cyan", "run": "blue", "deliver": "magenta"}
BAR = 30
INSTANTS = {
    "latency": "from the instant at which a query was due, whatever became of those before it, to its vector's being in its"
    " caller's hands",
    "late": "from when it was due to when the load sent it: the load's own fault, and part of the latency",
    "queue": "from its arrival at the router to a worker's taking it up",
    "tokenize, run": "in the worker, of the job that the query was in, with what was batched with it",
    "deliver": "the rest: messages, the router, the client",
    "bulk": "each client's next request after its last one's end, latency from sending it to having all its vectors; what was"
    " open at an edge of the time measured counts by the part within",
    "cores, PSS": "processor time over the time measured; memory at its end, pages that processes share by their share",
    "load, others": "the processes that asked; other programs, and what the host took",
}


def render(report: Report) -> RenderableType:
    settings, points = report.settings, report.points
    parts: list[RenderableType] = [_head(report)]
    if any(run.queries for point in points for run in point.runs):
        parts += [_queries(points), _stages(points)]
    if any(run.bulk for point in points for run in point.runs):
        parts.append(_bulk(points))
    parts.append(_processes(report.chosen))
    if report.objective is not None:
        parts.append(_objective(report.objective))
    parts += [text for text in (_failures(points), _doubts(points)) if text]
    parts.append(_instants(settings.workload))
    return Group(*(line for part in parts for line in (part, *([] if isinstance(part, Text) else [""]))))


def _head(report: Report) -> Text:
    pool, settings, machine = report.pool, report.settings, report.machine
    text = Text()
    text.append(f"{settings.workload}", style="bold")
    text.append(
        f" on {pool.model} ({pool.precision}, {pool.fingerprint}), {pool.workers} workers on cores {', '.join(pool.cores)}\n"
    )
    asked = f"{settings.arrivals} arrivals, " if settings.workload != "bulk" else ""
    text.append(
        f"{settings.repeats} × {settings.seconds:g} s after {settings.warmup_s:g} s of warm-up, {asked}seed {settings.seed};"
        f" {settings.texts}\n{machine.processor}, {machine.cores} cores, Linux {machine.kernel}, embedpool {pool.version}\n",
        style="dim",
    )
    return text


def _queries(points: Sequence[Point]) -> Table:
    table = _table("queries: latency in ms, from when each was due")
    for name in ("due/s", "answered/s", "p50", "p90", "p95", "p99", "p99.9", "max", "failed"):
        table.add_column(name, justify="right", style="bold" if name == "p95" else "")
    for point in points:
        numbers = point.numbers
        ms = [numbers[f"{name}_ms"] for name in ("p50", "p90", "p95", "p99", "p99.9", "max")]
        table.add_row(
            f"{point.rate:g}" if point.rate is not None else "",
            _cell(numbers["answered_per_s"], _count),
            *(_cell(each, _ms) for each in ms),
            _cell(numbers["failed_percent"], lambda value: f"{value:.2g} %" if value else "0"),
        )
    return table


def _stages(points: Sequence[Point]) -> Table:
    table = _table("where their time goes: ms on average")
    table.add_column("due/s", justify="right")
    for name in STAGES:
        table.add_column(Text(name, style=f"bold {COLORS[name]}"), justify="right")
    table.add_column("")
    for point in points:
        if "run_ms" in point.numbers:
            means = {name: point.numbers[f"{name}_ms"].median or 0.0 for name in STAGES}
            table.add_row(f"{point.rate:g}", *(_ms(means[name]) for name in STAGES), _bar(means))
    return table


def _bar(means: dict[str, float]) -> Text:
    """The stages' shares; cells are dealt out by running sums, so that they always fill the bar."""
    text, total, before = Text(), sum(means.values()) or 1.0, 0.0
    for name, value in means.items():
        cells = round((before + value) / total * BAR) - round(before / total * BAR)
        text.append("█" * cells, style=COLORS[name])
        before += value
    return text


def _bulk(points: Sequence[Point]) -> Table:
    mixed = any(point.rate is not None for point in points)
    table = _table("bulk work" + (" beside the queries" if mixed else ""))
    share = ("share of tokens",) if mixed else ()
    for name in (*(("queries due/s",) if mixed else ()), "texts/s", "tokens/s", *share, "request p50, ms", "p95, ms", "failed"):
        table.add_column(name, justify="right", style="bold" if name == "tokens/s" else "")
    for point in points:
        numbers = point.numbers
        shares = [_cell(numbers["bulk_share_percent"], "{:.0f} %".format)] if "bulk_share_percent" in numbers else [""]
        table.add_row(
            *([f"{point.rate:g}"] if mixed else []),
            _cell(numbers["bulk_texts_per_s"], _count),
            _cell(numbers["bulk_tokens_per_s"], _count),
            *(shares if mixed else []),
            *(_cell(numbers[f"bulk_{name}_ms"], _ms) for name in ("p50", "p95")),
            _cell(numbers["bulk_failed_percent"], lambda value: f"{value:.2g} %" if value else "0"),
        )
    return table


def _processes(point: Point) -> Table:
    table = _table(f"processes{_at(point)}")
    for name in ("", "count", "cores used", "PSS, MB"):
        table.add_column(name, justify="right" if name else "left")
    for role in dict.fromkeys(part.role for run in point.runs for part in run.usage.parts):
        found = [part for run in point.runs for part in run.usage.parts if part.role == role]
        cores, sizes = [p.cores for p in found if p.cores is not None], [p.pss_bytes for p in found if p.pss_bytes is not None]
        table.add_row(
            role, str(found[-1].processes), _of(cores, "{:.2f}".format), _of([size / 1e6 for size in sizes], "{:,.0f}".format)
        )
    pool_cores, pss = point.numbers.get("pool_cores"), point.numbers.get("pool_pss_mb")
    if pool_cores is not None:
        table.add_section()
        size = "not readable" if pss is None else _cell(pss, "{:,.0f}".format)
        table.add_row("pool", "", _cell(pool_cores, "{:.2f}".format), size, style="bold")
    table.add_row("load", "", _of([run.usage.load_cores for run in point.runs], "{:.2f}".format), "", style="dim")
    others = [run.usage.other_cores for run in point.runs if run.usage.other_cores is not None]
    table.add_row("others", "", _of(others, "{:.2f}".format), "", style="dim")
    return table


def _objective(found: Objective) -> Text:
    tried = Counter(verdict for each in found.tried for verdict in each.verdicts)
    runs = f"{tried.total()} runs at {len(found.tried)} rates"
    if found.rate is None:
        return Text(
            f"{found.asked} holds at no rate that was tried, down to {found.tried[0].rate:g}/s ({runs})", style="bold red"
        )
    text = Text(f"{found.asked} holds up to {found.rate:g}/s", style="bold green")
    above = [each.rate for each in found.tried if each.rate > found.rate]
    why = {
        "slo": "missed it",
        "load": "could not be made in time: the load was the limit, not the pool",
        "runs": "were not tried",
    }
    text.append(
        f"; {min(above):g}/s {why[found.ended_by]}" if above else "; higher rates were not tried", style="default not bold"
    )
    text.append(f" ({runs})\n", style="dim not bold")
    return text


def _failures(points: Sequence[Point]) -> Text:
    """A line for each rate, or none."""
    text = Text(style="red")
    for point in points:
        for name, latency in (("queries", _of_queries), ("bulk requests", _of_bulk)):
            codes = Counter[str]()
            for run in point.runs:
                codes.update(found.failed if (found := latency(run)) else {})
            if codes:
                said = ", ".join(f"{count} {code}" for code, count in codes.most_common())
                text.append(f"{name} without vectors{_at(point)}: {said}; they count as slower than all others\n")
    return text


def _of_queries(run: Run) -> Latency | None:
    return run.queries.latency if run.queries else None


def _of_bulk(run: Run) -> Latency | None:
    return run.bulk.latency if run.bulk else None


def _doubts(points: Sequence[Point]) -> Text:
    """A line for each kind of doubt: the first, and how many runs have one."""
    said: dict[str, list[str]] = {}
    for point in points:
        for run in point.runs:
            for doubt in run.doubts:
                said.setdefault(doubt.about, []).append(f"repeat {run.repeat + 1}{_at(point)}: {doubt.said}")
    runs, text = sum(len(point.runs) for point in points), Text(style="yellow")
    for lines in said.values():
        more = f" (so in {len(lines)} of {runs} runs)" if len(lines) > 1 else ""
        text.append(f"{lines[0]}{more}\n")
    return text


def _at(point: Point) -> str:
    return f" at {point.rate:g}/s" if point.rate is not None else ""


def _instants(workload: str) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="dim")
    hidden = {"query": ("bulk",), "bulk": ("latency", "late", "queue", "tokenize, run", "deliver")}.get(workload, ())
    for name, what in INSTANTS.items():
        if name not in hidden:
            table.add_row(name, what)
    return table


# ── cells ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _table(title: str) -> Table:
    return Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left", title_style="bold cyan")


def _cell(found: Spread, show: Callable[[float], str]) -> Text:
    """The median; below it least and most, where they differ from it."""
    text = Text(_shown(found.median, show))
    low, high = _shown(found.least, show), _shown(found.most, show)
    if low != high:
        text.append(f"\n{low}–{high}", style="dim not bold")
    return text


def _of(values: Sequence[float], show: Callable[[float], str]) -> Text:
    return _cell(spread(values), show) if values else Text("not readable")


def _shown(value: float | None, show: Callable[[float], str]) -> str:
    return NO_ANSWER if value is None else show(value)


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def show(report: Report, console: Console) -> None:
    console.print(render(report))
