"""Writes the tables of README.md and bench/README.md from bench/results/*.json; `--check` only says if they are current."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md")
BEGIN, END = "<!-- numbers: made by bench/render.py -->\n", "<!-- end of numbers -->"


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "results" / f"{name}.json").read_text())
    return found


def spread(values: list[float]) -> str:
    return f"{min(values):,g} – {max(values):,g}"


def table() -> str:
    """The numbers as Markdown."""
    overhead, bulk = result("overhead"), result("bulk")
    trip, of_bulk = overhead["results"], bulk["results"]
    p = trip["round_trip_us"]
    trips = trip["round_trip_p50_us_of_each_repeat"]
    rates = trip["pipelined_requests_per_s_of_each_repeat"]
    rows = [
        ("one query through client, router and echo worker, p50", f"{p['p50_us']:,g} µs", spread(trips), "≤ 250 µs"),
        ("the same, p95 and p99", f"{p['p95_us']:,g} and {p['p99_us']:,g} µs", "", ""),
        (
            "single-text requests through the router, pipelined",
            f"{trip['pipelined_requests_per_s']:,} /s",
            spread(rates),
            "≥ 20,000 /s",
        ),
        (
            f"bulk, MiniLM, {of_bulk['workers']} workers",
            f"{of_bulk['tokens_per_s']['pool']:,} tokens/s",
            "",
            "",
        ),
        (
            "bulk, against a plain loop over one session on one core",
            f"{of_bulk['ratio_to']['plain']:.2f} ×",
            spread(of_bulk["ratio_to_of_each_repeat"]["plain"]),
            "≥ 1.9 ×",
        ),
        (
            f"bulk, against {of_bulk['workers']} such loops at once, each on its core",
            f"{of_bulk['ratio_to']['each']:.2f} ×",
            spread(of_bulk["ratio_to_of_each_repeat"]["each"]),
            "",
        ),
        (
            "bulk, against one such loop with all texts sorted by length and batched",
            f"{of_bulk['ratio_to']['best']:.2f} ×",
            spread(of_bulk["ratio_to_of_each_repeat"]["best"]),
            "",
        ),
    ]
    lines = ["| what | median | repeats from – to | goal |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    machine = overhead["machine"]
    packages = machine["packages"]
    lines.append("")
    lines.append(
        f"{machine['processor']}, {machine['cores']} cores (shared, noisy), Linux {machine['kernel'].split('-')[0]},"
        f" Python {machine['python']}, ONNX Runtime {packages['onnxruntime']}, {overhead['date']}."
    )
    return "\n".join(lines) + "\n"


def rendered(page: Path) -> str:
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has no place for the numbers: {BEGIN.strip()} … {END}")
    return before + BEGIN + "\n" + table() + "\n" + END + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    stale = [page for page in PAGES if rendered(page) != page.read_text()]
    if given.check:
        sys.exit(f"not current: {', '.join(map(str, stale))}; run bench/render.py" if stale else 0)
    for page in stale:
        page.write_text(rendered(page))
        print(f"written: {page}")


if __name__ == "__main__":
    main()
