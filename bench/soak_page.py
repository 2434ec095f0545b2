"""Table and words of a soak: pure, from its result file to Markdown."""

from __future__ import annotations

from typing import Any

from findings import Row, markdown, measured_on, result

NAMES = {
    "router_mb": "router, memory (PSS)",
    "router_anonymous_mb": "router, the anonymous part of it",
    "supervisor_mb": "supervisor, memory (PSS)",
    "supervisor_anonymous_mb": "supervisor, the anonymous part of it",
    "forkserver_mb": "forkserver, memory (PSS); a new one at each reload",
    "workers_mb": "workers, memory (PSS); killed and replaced",
    "pool_mb": "all processes, memory (PSS)",
    "router_descriptors": "router, descriptors",
    "supervisor_descriptors": "supervisor, descriptors",
    "forkserver_descriptors": "forkserver, descriptors",
    "workers_descriptors": "workers, descriptors",
    "segments": "segments",
    "segments_mb": "memory of the segments",
    "sessions": "sessions that the router knows",
    "files": "files in the runtime directory",
    "pool_processes": "processes",
}


def points(found: dict[str, Any], name: str) -> list[tuple[float, float]]:
    """The samples of a line: seconds and values."""
    pairs = (word.split(":") for word in found["samples"][name].split())
    return [(float(at), float(value)) for at, value in pairs]


def unit_of(name: str) -> str:
    return " MB" if name.endswith("_mb") else ""


def number(value: float) -> str:
    """With its sign; a true minus."""
    text = f"{value:+.2f}" if abs(value) < 10 else f"{value:+.0f}"
    return "0" if float(text) == 0 else text.replace("-", "−")


def slope_in_words(line: dict[str, Any], unit: str) -> str:
    """ "+0.12 MB per hour (−0.3 – +0.5)"."""
    if line["per_hour"] is None:
        return "too few points for a slope"
    low, high = line["interval"]
    interval = "" if low == high else f" ({number(low)} – {number(high)})"
    return f"{number(line['per_hour'])}{unit} per hour{interval}"


def lines_table(found: dict[str, Any]) -> str:
    """Every line, its slope and verdict, as Markdown."""
    head = ("line, in the quiet moments", "first – last", "per hour (95 %)", "may be", "resolves", "verdict")
    rows = []
    for name, line in found["results"]["lines"].items():
        unit, ends = unit_of(name), line["first_and_last"]
        rows.append(
            (
                NAMES[name],
                f"{ends[0]:,.4g} – {ends[1]:,.4g}{unit}" if ends else "",
                slope_in_words(line, unit).replace(" per hour", ""),
                f"≤ {line['most_per_hour']:g}{unit}" + ("" if line["required"] else ", for information"),
                "" if line["resolves"] is None else f"± {line['resolves']:.2g}{unit}",
                line["verdict"],
            )
        )
    return f"{in_words(found['results'])}\n\n{markdown(head, rows)}\n\n{measured_on(found)}\n"


def in_words(found: dict[str, Any]) -> str:
    """What was done to the pool, and what came of it."""
    visits = found["visits"]
    killed = sum(n for what, n in visits.items() if what.endswith(": killed"))
    wrong, without = failures(found)
    ms, load = found["latency_ms"]["all"], found["load_average"]
    return (
        f"{found['minutes']} minutes, {found['workers']} workers of MiniLM: {sum(found['queries'].values()):,} queries,"
        f" {sum(found['bursts'].values())} bulk bursts, {sum(visits.values()):,} clients that came, {killed} of them killed,"
        f" {len(found['kills_at_s'].split())} kills of a worker, {len(found['reloads_at_s'].split())} reloads."
        f" Wrong answers: {wrong}. Without an answer in time: {without}. Left when the pool had ended:"
        f" {len(found['left_behind'])}. Queries {ms['p50']:.0f} ms at p50, {ms['p99']:,.0f} at p99, {ms['max']:,.0f} at most,"
        f" on a machine whose load average was {load[1]:.1f} ({load[0]:.1f} to {load[2]:.1f}) on {found['cores']} cores."
        f" Slopes are of the minutes after the first {found['warm_up_minutes']}, one point a minute."
    )


def failures(found: dict[str, Any]) -> tuple[int, int]:
    """Wrong answers, and requests and clients that had none."""
    wrong = sum(n for what, n in found["failed"].items() if "wrong" in what)
    return wrong, sum(found["failed"].values()) - wrong


def of_soak() -> list[Row]:
    """Rows of the table of numbers."""
    found = result("soak")["results"]
    router, pool = found["lines"]["router_mb"], found["lines"]["pool_mb"]
    what = f"{found['minutes']} minutes of clients that come, stall and die, workers killed and reloads"
    wrong, without = failures(found)
    asked = sum(found["queries"].values()) + sum(found["visits"].values()) + sum(found["bursts"].values())
    return [
        (
            f"{what}: wrong, without an answer in time, and left behind",
            f"{wrong} and {without} of {asked:,}, {len(found['left_behind'])}",
            f"load average {found['load_average'][1]:.1f} on {found['cores']} cores",
            "0, 0, 0",
        ),
        ("growth of the router's memory (PSS) in that, and 95 %", *mb_per_hour(router), "≤ 1 MB/h"),
        ("the same of all processes", *mb_per_hour(pool), ""),
    ]


def mb_per_hour(line: dict[str, Any]) -> tuple[str, str]:
    low, high = line["interval"]
    return f"{number(line['per_hour'])} MB/h", f"{number(low)} – {number(high)}"
