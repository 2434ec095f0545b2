"""The pictures of bench/README.md, drawn from result files. render.py says when; matplotlib comes with the extra `bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from findings import RESULTS, result, source_of
from plot_soak import soak
from quality_page import full

COLOURS = ("#1b4f8a", "#c8553d", "#3a7d44", "#7a5195", "#b8860b", "#444444")
GREY = "#6b6b6b"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
AREA_PER_MB = 2.2


def draw(picture: Path) -> None:
    """Draws bench/NAME.png from results/NAME.json, and writes into it which result that was."""
    with mpl.rc_context(STYLE):
        figure = {"quality": quality, "growth": growth, "soak": lambda: soak(result("soak")["results"])}[picture.stem]()
        source = source_of(RESULTS / f"{picture.stem}.json")
        figure.savefig(picture, dpi=130, metadata={"Description": source, "Software": None})
        plt.close(figure)


# ── quality ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def quality() -> Figure:
    models = result("quality")["results"]["models"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.3), layout="constrained", width_ratios=(1.15, 1))
    over_speed(left, models)
    over_bytes(right, models)
    return figure


def over_speed(axes: Axes, models: Mapping[str, Any]) -> None:
    """A point for each precision: its area is the memory, its bar the interval of the difference to fp32."""
    for colour, (label, model) in zip(COLOURS, models.items(), strict=False):
        row, cost = full(model), model["cost"]
        best = full(models[model["compared_with"]])["ndcg@10"]["mean"]
        y, (low, high) = row["ndcg@10"]["mean"], (best + end for end in row["ndcg@10_to_reference"]["interval"])
        bar = [[max(0.0, y - low)], [max(0.0, high - y)]]
        axes.errorbar(cost["tokens_per_s"], y, yerr=bar, color=colour, capsize=3, lw=1.2)
        name = f"{label.partition(' (')[0]}: {cost['pss_mb']:,} MB"
        axes.scatter(cost["tokens_per_s"], y, s=AREA_PER_MB * cost["pss_mb"], color=colour, alpha=0.35, lw=0, label=name)
        axes.scatter(cost["tokens_per_s"], y, s=10, color=colour)
        if label == model["compared_with"]:
            axes.axhline(y, color=colour, lw=0.8, ls=":")
    axes.margins(x=0.15, y=0.15)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.45 * (high - low), high)  # the legend's place
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for handle in axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.06)).legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]  # a scatter's
    axes.set_xlabel(f"tokens/s, {next(iter(models.values()))['cost']['workers']} workers")
    axes.set_ylabel("nDCG@10")
    axes.set_title("Quality over speed; area: memory of the workers")
    axes.text(
        0.01, 0.02, "bars: 95 % of the difference to fp32, same queries", transform=axes.transAxes, color=GREY, fontsize=8
    )


def over_bytes(axes: Axes, models: Mapping[str, Any]) -> None:
    """The first model's dimensions, a line for each delivered type."""
    label, model = next(iter(models.items()))
    dtypes = list(dict.fromkeys(row["dtype"] for row in model["rows"]))
    for colour, dtype in zip(COLOURS, dtypes, strict=False):
        rows = [row for row in model["rows"] if row["dtype"] == dtype]
        x, y = [row["row_bytes"] for row in rows], [row["ndcg@10"]["mean"] for row in rows]
        low, high = zip(*(row["ndcg@10"]["interval"] for row in rows), strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
        name = {"ubinary": "binary, ubinary (Hamming)"}.get(dtype, dtype)
        axes.plot(x, y, "o-", color=colour, ms=4, lw=1.4, label=name)
        if dtype in ("float32", "ubinary"):
            for i, row in enumerate(rows):
                place = (-14, 7) if i % 2 and dtype == "ubinary" else (2, -13)
                label_at(axes, str(row["dim"]), (row["row_bytes"], row["ndcg@10"]["mean"]), place, colour)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("bytes of a vector; at the points, its dimensions")
    axes.set_ylabel("nDCG@10")
    axes.set_title(f"Quality over the index's memory: {label}")
    axes.legend(loc="lower right")


def label_at(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], colour: str) -> None:
    axes.annotate(text, at, xytext=offset, textcoords="offset points", color=colour, fontsize=8)


# ── growth ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def growth() -> Figure:
    found = result("growth")["results"]
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 7.2), layout="constrained")
    rows, tokens, workers, clients = axes.flat
    of_series(rows, {model: one["us_per_row"] for model, one in found["rows"].items()}, "rows in one call", "µs per row")
    rows.set_title("A row, among more rows")
    of_series(tokens, found["tokens"], "tokens of the text", "ms")
    tokens.set_title("A text, as it gets longer")
    per_worker, of_all = found["open_requests_per_worker"], found["open_requests"]
    of_router(workers, {f"{per_worker} open for each": found["workers"], f"{of_all} open in all": found["thin"]}, "workers")
    of_router(clients, {f"{of_all} open in all": found["clients"]}, "clients")
    return figure


def of_series(axes: Axes, series: Mapping[str, Mapping[str, float]], x: str, y: str) -> None:
    for colour, (label, costs) in zip(COLOURS, series.items(), strict=False):
        counts = [int(count) for count in costs]
        axes.plot(counts, list(costs.values()), "o-", color=colour, ms=4, lw=1.4, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()


def of_router(axes: Axes, series: Mapping[str, Mapping[str, Any]], what: str) -> None:
    """The router's time per request, with the requests that went to a worker together beside each point."""
    for colour, (label, found) in zip(COLOURS, series.items(), strict=False):
        counts, us = [int(count) for count in found], [one["router_us"] for one in found.values()]
        axes.plot(counts, us, "o-", color=colour, ms=4, lw=1.4, label=label)
        for count, one in zip(counts, found.values(), strict=True):
            label_at(axes, f"{one['requests_per_job']:.0f}", (count, one["router_us"]), (0, 6), colour)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(0, 1.12 * max(one["router_us"] for found in series.values() for one in found.values()))
    axes.set_xlabel(f"{what}; at the points, requests in one job")
    axes.set_ylabel("µs of the router per request")
    axes.set_title(f"The router's time per request, among more {what}")
    axes.legend(loc="lower right")
