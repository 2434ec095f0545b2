"""The picture of a soak: memory, descriptors and sessions, and latency over the minutes, with what was done to the pool."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from soak_page import points, slope_in_words, unit_of
from soak_plan import BUSY_S, LOOK_S, MINUTE_S

GREY = "#6b6b6b"
TOP = (("router", "#1b4f8a"), ("supervisor", "#c8553d"))
ALL = (("pool", "#444444"), ("workers", "#3a7d44"), ("forkserver", "#b8860b"))
COUNTS = (
    ("router_descriptors", "#1b4f8a", "descriptors of the router"),
    ("workers_descriptors", "#3a7d44", "descriptors of the workers"),
    ("supervisor_descriptors", "#c8553d", "descriptors of the supervisor"),
    ("sessions", "#7a5195", "sessions"),
    ("segments", "#b8860b", "segments"),
)
PERCENTILES = (("p50", "#3a7d44"), ("p95", "#1b4f8a"), ("p99", "#7a5195"), ("max", "#c8553d"))


def soak(found: dict[str, Any]) -> Figure:
    """Of the results of one run."""
    figure, axes = plt.subplots(4, 1, figsize=(10.4, 11.5), layout="constrained", sharex=True, height_ratios=(1.1, 1, 1, 1))
    top, whole, counts, latency = axes
    for name, colour in TOP:
        line(top, found, f"{name}_mb", colour, f"{name}, PSS")
        line(top, found, f"{name}_anonymous_mb", colour, f"{name}, its anonymous part", dashed=True)
    top.set_title("Memory of the processes that live as long as the pool (not from 0)")
    for name, colour in ALL:
        line(whole, found, f"{name}_mb", colour, "all processes" if name == "pool" else name)
    whole.set_title("Memory (PSS) of all processes, and of those that are killed and replaced")
    for name, colour, label in COUNTS:
        line(counts, found, name, colour, label)
    counts.set_title("Descriptors, sessions and segments")
    of_latency(latency, found)
    for one, unit in ((top, "MB"), (whole, "MB"), (counts, "count")):
        one.set_ylabel(unit)
        one.set_ylim(bottom=None if one is top else 0)
        one.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    for one in axes:
        marks(one, found)
    warm = found["warm_up_minutes"]
    top.text(warm, 0.4, " slopes from here on", transform=top.get_xaxis_transform(), color=GREY, fontsize=8)
    latency.set_xlabel(
        "minutes; red: a worker is killed, blue: a reload; grey: quiet, and the points in it are what slopes are made of",
        color=GREY,
    )
    return figure


def line(axes: Axes, found: dict[str, Any], name: str, colour: str, label: str, *, dashed: bool = False) -> None:
    """The samples, with points where it counts, and the slope in the legend."""
    minutes, values = zip(*((at / 60, value) for at, value in points(found, name)), strict=True)
    slope = found["lines"].get(name)
    text = f"{label}\n  {slope_in_words(slope, unit_of(name))}" if slope else label
    axes.plot(minutes, values, ls=":" if dashed else "-", color=colour, lw=1.2, label=text)
    warm = found["warm_up_minutes"]
    quiet = [(x, y) for x, y in zip(minutes, values, strict=True) if x % 1 >= 1 - LOOK_S / MINUTE_S and x >= warm]
    if slope and quiet:
        axes.plot(*zip(*quiet, strict=True), ls="", marker="o", color=colour, ms=3)


def of_latency(axes: Axes, found: dict[str, Any]) -> None:
    latency = found["latency_ms"]
    for name, colour in PERCENTILES:
        values = list(map(float, latency["of_each_window"][name].split()))
        minutes = [(i + 0.5) * latency["window_s"] / 60 for i in range(len(values))]
        axes.plot(minutes, values, color=colour, lw=1.2, label=f"{name}\n  {latency['all'][name]:,.0f} ms of all")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter("")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("ms")
    axes.set_title(f"Latency of {found['queries_per_s']:g} queries per second, in windows of {latency['window_s']:g} s")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)


def marks(axes: Axes, found: dict[str, Any]) -> None:
    """Kills as red ticks at the bottom, reloads as blue lines, quiet parts in grey, the warm-up hatched."""
    for i in range(found["minutes"]):
        axes.axvspan(i + BUSY_S / MINUTE_S, i + 1, color="#f0f0f0", lw=0, zorder=0)
    for at in map(float, found["reloads_at_s"].split()):
        axes.axvline(at / 60, color="#1b4f8a", lw=0.8, alpha=0.5, zorder=0)
    for at in map(float, found["kills_at_s"].split()):
        axes.axvline(at / 60, ymax=0.04, color="#d62728", lw=1.2)
    axes.axvline(found["warm_up_minutes"], color=GREY, lw=1, ls="--")
    axes.set_xlim(0, found["minutes"])
    axes.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    axes.grid(axis="x", visible=False)
