"""A benchmark as one picture: percentiles, throughput and latency over rate, where the time goes, and the timeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from embedpool.bench import RunFailed
from embedpool.bench.recording import merged, percentile_ms
from embedpool.bench.results import Point, Report, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = ("late", "queue", "tokenize", "run", "deliver")
COLORS = {"late": "#d62728", "queue": "#e8a33d", "tokenize": "#2aa198", "run": "#3b6fb6", "deliver": "#9467bd"}
LINES = {"p50": "#3b6fb6", "p95": "#e8a33d", "p99": "#d62728"}
NINES = 4  # the percentiles' axis ends at 99.99 %
AT_TOP = {"ncols": 6, "loc": "upper left", "columnspacing": 1.0, "handlelength": 1.4, "borderaxespad": 0.2}
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "font.size": 9.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw(report: Report, path: str) -> None:
    """Writes a PNG (or what else the name ends in, of what matplotlib knows). Raises RunFailed where it cannot be written."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 8.3))
        figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.12)
        axes = figure.subplots(2, 2)
        has_queries = any(run.queries for point in report.points for run in point.runs)
        panels = (
            (_percentiles, _over_rate, _stages, _timeline) if has_queries else (_bulk_percentiles, _bulk, _memory, _timeline)
        )
        for panel, axis in zip(panels, axes.flat, strict=True):
            panel(axis, report)
        figure.suptitle(_title(report), x=0.01, ha="left", fontsize=10.5)
        try:
            figure.savefig(path, dpi=130)
        except (OSError, ValueError) as error:
            raise RunFailed(f"{path} cannot be written: {error}") from error


def _title(report: Report) -> str:
    pool, settings, found = report.pool, report.settings, report.objective
    held = "" if found is None else f"{found.asked} " + (f"up to {found.rate:g}/s" if found.rate else "at no rate") + ", "
    what = f"{settings.workload}: {held}{pool.model} ({pool.precision}), {pool.workers} workers"
    return f"{what}; {settings.repeats} × {settings.seconds:g} s, {report.machine.processor}, {report.date[:10]}"


# ── queries ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _percentiles(axis: Axes, report: Report) -> None:
    axis.set_title("latency by percentile (all repeats together)")
    for point, color in zip(report.points, _shades(len(report.points)), strict=True):
        latencies = [run.queries.latency for run in point.runs if run.queries]
        if latencies:
            failed = sum(sum(each.failed.values()) for each in latencies)
            _curve(axis, [each.histogram for each in latencies], failed, f"{point.rate:g}/s", color)
    _percentile_axis(axis, "ms, from when the query was due", len(report.points))


def _curve(axis: Axes, histograms: Sequence[str], failed: int, label: str, color: object) -> None:
    """Ends where failed requests begin, and where fewer than one request is left."""
    histogram = merged(histograms)
    nines = np.linspace(0, min(NINES, np.log10(max(10, histogram.get_total_count() + failed))), 160)
    found = [(x, ms) for x in nines if (ms := percentile_ms(histogram, failed, float(100 * (1 - 10.0**-x)))) is not None]
    if found:
        axis.plot([x for x, _ in found], [ms for _, ms in found], label=label, color=color, linewidth=1.8)


def _percentile_axis(axis: Axes, label: str, lines: int) -> None:
    axis.set_xticks([0, np.log10(2), 1, np.log10(20), 2, 3, 4], ["0", "50", "90", "95", "99", "99.9", "99.99 %"])
    _logarithmic(axis, "y")
    axis.set_ylabel(label)
    axis.legend(ncols=1 + lines // 8, title="due" if lines > 1 else None)


def _over_rate(axis: Axes, report: Report) -> None:
    points = [point for point in report.points if point.rate is not None]
    if len(points) == 1:
        _distribution(axis, points[0])
        return
    axis.set_title("latency and throughput over the rate")
    rates = [point.rate or 0.0 for point in points]
    answered = [point.numbers["answered_per_s"].median or 0.0 for point in points]
    right = axis.twinx()
    right.plot(rates, rates, color="#bbbbbb", linewidth=1, linestyle=":", label="asked")
    right.plot(rates, answered, color="#777777", linewidth=1.4, linestyle="--", marker=".", label="answered")
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.set_ylabel("requests/s")
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    right.set_ylim(bottom=0)
    for name, color in LINES.items():
        spreads = [point.numbers[f"{name}_ms"] for point in points]
        kept = [(rate, s) for rate, s in zip(rates, spreads, strict=True) if s.median is not None]
        x = [rate for rate, _ in kept]
        axis.plot(x, [s.median or 0 for _, s in kept], color=color, marker="o", markersize=4, label=name)
        highest = [s.median if s.most is None else s.most for _, s in kept]
        axis.fill_between(
            x, [s.least or 0.0 for _, s in kept], [h or 0.0 for h in highest], color=color, alpha=0.15, linewidth=0
        )
    _limit(axis, report)
    _logarithmic(axis, "y")
    axis.set_xlabel("queries due per second")
    axis.set_ylabel("ms; bands: least to most of the repeats")
    lines, names = axis.get_legend_handles_labels()
    more, others = right.get_legend_handles_labels()
    axis.legend(lines + more, names + others, **AT_TOP)
    _room_at_top(axis)


def _limit(axis: Axes, report: Report) -> None:
    """The objective, as a line to stay below."""
    if report.objective is not None:
        limit_ms = float(report.objective.asked.partition("=")[2].removesuffix("ms"))
        axis.axhline(limit_ms, color="#444444", linewidth=1, linestyle="-.", label=report.objective.asked)


def _distribution(axis: Axes, point: Point) -> None:
    axis.set_title(f"distribution of latencies at {point.rate:g}/s")
    histogram = merged([run.queries.latency.histogram for run in point.runs if run.queries])
    values = [(item.value_iterated_to / 1e3, item.count_added_in_this_iter_step) for item in histogram.get_recorded_iterator()]
    if values:
        ms = np.array([value for value, _ in values])
        edges = np.geomspace(max(ms.min() * 0.95, 1e-3), ms.max() * 1.05, 60)
        axis.hist(ms, bins=list(edges), weights=[count for _, count in values], color=LINES["p50"], alpha=0.85)
    for name, color in list(LINES.items()):
        median = point.numbers[f"{name}_ms"].median
        if median is not None:
            axis.axvline(median, color=color, linewidth=1.4, linestyle="--", label=f"{name} {median:.3g} ms")
    _logarithmic(axis, "x")
    axis.set_xlabel("ms, from when the query was due")
    axis.set_ylabel("queries")
    axis.legend()


def _stages(axis: Axes, report: Report) -> None:
    points = [point for point in report.points if "run_ms" in point.numbers]
    if len(points) == 1:
        _stages_at(axis, points[0])
        return
    axis.set_title("where the time goes: shares of the mean (right)")
    means = np.array([[point.numbers[f"{name}_ms"].median or 0.0 for name in STAGES] for point in points])
    totals = means.sum(axis=1)
    below = np.zeros(len(points))
    for column, name in enumerate(STAGES):
        share = 100 * means[:, column] / totals
        axis.barh(range(len(points)), share, left=below, color=COLORS[name], label=name, height=0.7)
        below += share
    for row, total in enumerate(totals):
        axis.text(101.5, row, f"{total:,.3g} ms" if total < 1000 else f"{total:,.0f} ms", va="center")
    axis.set_yticks(range(len(points)), [f"{point.rate:g}/s" for point in points])
    axis.set_ylim(-0.6, len(points) + 0.3)
    axis.set_xlim(0, 118)
    axis.set_xticks(range(0, 101, 25))
    axis.grid(visible=False)
    axis.set_xlabel("%")
    axis.legend(**AT_TOP)


def _stages_at(axis: Axes, point: Point) -> None:
    axis.set_title(f"where the time goes at {point.rate:g}/s")
    found = [stage for run in point.runs if run.queries for stage in run.queries.stages]
    for row, name in enumerate(STAGES):
        p95 = percentile_ms(merged([stage.histogram for stage in found if stage.name == name]), 0, 95)
        mean = point.numbers[f"{name}_ms"].median or 0.0
        axis.barh(row, mean, color=COLORS[name], height=0.55)
        axis.plot([0, p95 or 0], [row, row], color="#444444", linewidth=1, marker="|", markevery=[1], markersize=9)
        axis.annotate(
            f"mean {mean:.3g}, p95 {p95 or 0:.3g} ms",
            (max(mean, p95 or 0), row),
            (6, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set_yticks(range(len(STAGES)), STAGES)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlim(0, axis.get_xlim()[1] * 1.3)  # room for what is written behind the bars
    axis.set_xlabel("ms")


# ── time, and bulk work ──────────────────────────────────────────────────────────────────────────────────────────────


def _timeline(axis: Axes, report: Report) -> None:
    point = report.chosen
    at = f" at {point.rate:g}/s" if point.rate is not None else ""
    axis.set_title(f"timeline{at}, repeats one after the other")
    begins = np.cumsum([0.0, *(_lasting(run) for run in point.runs)])
    for begin, run in zip(begins, point.runs, strict=False):
        axis.axvline(begin, color="#cccccc", linewidth=0.8)
        x = [begin + each.at_s + each.seconds / 2 for each in run.timeline]
        first = run is point.runs[0]
        if run.queries is not None:
            _latency_line(axis, run, x, named=first)
    axis.set_xlabel("s")
    axis.set_xlim(0, begins[-1])
    if any(run.bulk for run in point.runs):
        _work_line(axis if point.rate is None else axis.twinx(), point, begins.tolist())
    if point.rate is not None:
        axis.set_ylabel("ms")
        _logarithmic(axis, "y")
        axis.legend(**AT_TOP)
        _room_at_top(axis)


def _lasting(run: Run) -> float:
    return run.timeline[-1].at_s + run.timeline[-1].seconds


def _latency_line(axis: Axes, run: Run, x: Sequence[float], *, named: bool) -> None:
    for name, color in (("p50_ms", LINES["p50"]), ("p95_ms", LINES["p95"]), ("max_ms", LINES["p99"])):
        y = [value if (value := getattr(each, name)) is not None else np.nan for each in run.timeline]
        label, is_max = name.removesuffix("_ms") if named else None, name == "max_ms"
        axis.plot(x, y, color=color, label=label, linewidth=1.0 if is_max else 1.5, alpha=0.6 if is_max else 1.0)


def _work_line(axis: Axes, point: Point, begins: Sequence[float]) -> None:
    for begin, run in zip(begins, point.runs, strict=False):
        x = [begin + each.at_s for each in run.timeline] + [begin + _lasting(run)]
        axis.stairs([each.bulk_tokens_per_s for each in run.timeline], x, color="#888888", fill=True, alpha=0.25)
    axis.set_ylim(bottom=0)
    axis.grid(visible=False)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel("bulk tokens/s (grey)")


def _bulk_percentiles(axis: Axes, report: Report) -> None:
    axis.set_title(f"latency of requests of {report.settings.rows} texts by percentile")
    found = [run.bulk.latency for point in report.points for run in point.runs if run.bulk]
    failed = sum(sum(each.failed.values()) for each in found)
    _curve(axis, [each.histogram for each in found], failed, "all repeats together", LINES["p50"])
    _percentile_axis(axis, "ms, from sending to having all vectors", 1)


def _bulk(axis: Axes, report: Report) -> None:
    axis.set_title("throughput of each repeat")
    found = [run.bulk.tokens_per_s for point in report.points for run in point.runs if run.bulk]
    bars = axis.bar([str(i + 1) for i in range(len(found))], found, color=LINES["p50"], width=0.5)
    axis.bar_label(bars, fmt="{:,.0f}", padding=2)
    axis.grid(visible=False, axis="x")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set_ylabel("tokens/s")
    axis.set_xlabel("repeat")


def _memory(axis: Axes, report: Report) -> None:
    axis.set_title("memory of the pool (PSS, last repeat)")
    parts = [part for part in report.chosen.runs[-1].usage.parts if part.pss_bytes is not None]
    names = [f"{part.role} × {part.processes}" if part.processes > 1 else part.role for part in parts]
    bars = axis.barh(names, [(part.pss_bytes or 0) / 1e6 for part in parts], color=COLORS["tokenize"], height=0.5)
    axis.bar_label(bars, fmt="{:,.0f} MB", padding=3)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("MB")


def _shades(count: int) -> list[object]:
    """From pale to dark: the higher the rate, the darker."""
    import matplotlib

    return [LINES["p50"]] if count == 1 else list(matplotlib.colormaps["viridis_r"](np.linspace(0.12, 0.95, count)))


def _logarithmic(axis: Axes, which: Literal["x", "y"]) -> None:
    """Plain numbers, and some of them where less than a decade is shown."""
    from matplotlib.ticker import LogLocator, NullFormatter

    (axis.set_xscale if which == "x" else axis.set_yscale)("log")
    scale = axis.xaxis if which == "x" else axis.yaxis
    scale.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=10))
    scale.set_major_formatter(lambda value, _: f"{value:,g}")
    scale.set_minor_formatter(NullFormatter())


def _room_at_top(axis: Axes) -> None:
    """For the legend, above what is drawn, on a logarithmic axis."""
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** 0.1)
