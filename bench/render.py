"""Writes the tables of README.md and bench/README.md from bench/results/*.json; `--check` only says if they are current."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md")
BEGIN, END = "<!-- {}: made by bench/render.py -->\n", "<!-- end of {} -->"


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
    mixed = result("mixed")["results"]
    ratios = [repeat["p95_ratio"] for repeat in mixed["of_each_repeat"]]
    kept = [repeat["bulk_kept"] for repeat in mixed["of_each_repeat"]]
    queries = mixed["queries_ms"]
    rows += [
        (
            f"{mixed['queries_per_s']:g} queries/s beside {mixed['bulk_clients']} bulk clients, MiniLM: p95 to p95 alone",
            f"{mixed['p95_ratio']:.2f} ×",
            spread(ratios),
            "≤ 2.5 ×",
        ),
        (
            "the same in ms: p50 and p95 alone, and beside bulk",
            f"{queries['alone']['p50']:.1f} and {queries['alone']['p95']:.1f},"
            f" {queries['beside_bulk']['p50']:.1f} and {queries['beside_bulk']['p95']:.1f} ms",
            "",
            "",
        ),
        ("bulk beside those queries, of what they leave it", f"{mixed['bulk_kept']:.0%}", spread(kept), "≥ 80 %"),
    ]
    lines = ["| what | median | repeats from – to | goal |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", measured_on(overhead)]) + "\n"


def measured_on(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores (shared, noisy), Linux {machine['kernel'].split('-')[0]},"
        f" Python {machine['python']}, ONNX Runtime {machine['packages']['onnxruntime']}, {found['date']}."
    )


def models_table() -> str:
    """What models cost and what smaller weights lose, as Markdown."""
    found = result("models")
    names = (
        "prepared in",
        "on disk",
        "one worker",
        "each further",
        "worker starts in",
        "16 / 64 / 256 tokens",
        "cosine to fp32",
    )
    lines = [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, row in found["results"].items():
        cosine = row.get("cosine")
        cells = (
            label,
            f"{row['prepare_s']:g} s",
            f"{row['artifact_mb']:,} MB",
            f"{row['one_worker_mb']:,} MB",
            f"**{row['further_worker_mb']:g} MB**",
            f"{row['start_s']:.2f} s",
            " / ".join(f"{ms:.1f}" for ms in row["run_ms"].values()) + " ms",
            f"{cosine['mean']:.4f}, at worst {cosine['least']:.4f}" if cosine else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", measured_on(found)]) + "\n"


TABLES = {"numbers": table, "models": models_table}


def rendered(page: Path) -> str:
    text = page.read_text()
    for name, made in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise SystemExit(f"{page} has no place for the {name}: {begin.strip()} … {end}")
        text = before + begin + "\n" + made() + "\n" + end + after
    return text


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
