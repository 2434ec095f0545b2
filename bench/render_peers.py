"""The tables of the pool beside other libraries, and of what the machine can do at the most. Used by render.py.

The result files are made by bench/peers.py and bench/limit.py; where one is missing, the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OURS = "embedpool, fp32"
Row = dict[str, Any]


def result(name: str) -> dict[str, Any] | None:
    """None: not measured yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def markdown(names: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def not_measured(name: str) -> str:
    return f"Not measured yet: `bench/{name}.py` does.\n"


# ── cells ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ms(found: Row | None, *percents: int) -> str:
    """ "" where it is not measured: a library without a server has no queries of other programs."""
    return "" if not found else " / ".join(f"{found[f'p{percent}']:,.1f}" for percent in percents) + " ms"


def share(of: float | None) -> str:
    return "" if of is None else f"{of:.0%}"


def cosine(found: Row | None) -> str:
    if not found:
        return ""
    if "error" in found:
        return str(found["error"])
    return f"{found['mean']:.5f}, at worst {found['least']:.5f}" + ("" if found["same"] else ": not the same")


def versions(rows: Iterable[Row]) -> str:
    """Of all peers together."""
    found = {f"{name} {number}" for row in rows for name, number in row.get("versions", {}).items()}
    return ", ".join(sorted(found))


def failed(row: Row, columns: int) -> list[str]:
    """The cells of a peer without numbers."""
    reason = " ".join(str(row["error"]).replace("|", "/").split())
    return [f"not measured: {reason}", *[""] * (columns - 1)]


def bulk(row: Row) -> str:
    each = row["bulk_tokens_per_s_of_each_repeat"]
    return f"{row['bulk_tokens_per_s']:,} ({min(each):,} – {max(each):,})"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def peers() -> str:
    """Both models, everything."""
    parts = [full(found) for name in ("peers", "peers-gemma") if (found := result(name)) is not None]
    return "\n".join(parts) if parts else not_measured("peers")


def full(found: dict[str, Any]) -> str:
    results = found["results"]
    per_s = f"{results['queries_per_s']:g}/s"
    names = ["", "bulk, tokens/s (from – to)", "texts/s", "batch", "of the limit", "one query, p50 / p95 / p99", "of the limit"]
    names += [f"{per_s}: p50 / p95 / p99", f"{per_s} beside bulk", "bulk beside, texts/s", "memory", "first answer"]
    names += ["cosine to fp32"]
    rows = [[name, *full_cells(row, len(names) - 1)] for name, row in results["peers"].items()]
    about = f"{results['model']}: {results['texts']} texts, {results['tokens']:,} tokens, {results['cores']} cores, "
    about += f"{results['repeats']} repeats, {results['took_s']} s in all."
    return f"{about}\n\n{markdown(names, rows)}\n{versions(results['peers'].values())}. {measured_on(found)}\n"


def full_cells(row: Row, columns: int) -> list[str]:
    if "error" in row:
        return failed(row, columns)
    limit = row["of_limit"]
    if "query_ms" not in row:
        return [bulk(row), "", "", share(limit["bulk"]), *[""] * (columns - 4)]
    return [
        bulk(row),
        f"{row['bulk_texts_per_s']:,g}",
        str(row["batch"] or "its own"),
        share(limit["bulk"]),
        ms(row["query_ms"], 50, 95, 99),
        share(limit["query"]),
        ms(row.get("open_ms"), 50, 95, 99),
        ms(row.get("beside_ms"), 50, 95, 99),
        f"{row['bulk_texts_per_s_beside_queries']:,g}" if "beside_ms" in row else "",
        f"{row['pss_mb']:,} MB",
        f"{row['start_s']:.1f} s",
        cosine(row["cosine"]),
    ]


def beside_others() -> str:
    """MiniLM alone, and what most readers ask for."""
    found = result("peers")
    if found is None:
        return not_measured("peers")
    results = found["results"]
    ours = results["peers"].get(OURS, {}).get("bulk_tokens_per_s")
    per_s = f"p95 at {results['queries_per_s']:g} queries/s, and beside bulk"
    names = ["", "bulk, tokens/s", "the pool's, ×", "one query, p50", per_s, "memory", "first answer", "least cosine to fp32"]
    rows = [[name, *short_cells(row, ours, len(names) - 1)] for name, row in results["peers"].items()]
    return f"{results['model']}.\n\n{markdown(names, rows)}\n{measured_on(found)}\n"


def short_cells(row: Row, ours: float | None, columns: int) -> list[str]:
    if "error" in row:
        return failed(row, columns)
    ratio = f"{ours / row['bulk_tokens_per_s']:.2f}" if ours else ""
    if "query_ms" not in row:
        return [f"{row['bulk_tokens_per_s']:,}", ratio, *[""] * (columns - 2)]
    beside = f"{row['open_ms']['p95']:,.1f}, {row['beside_ms']['p95']:,.1f} ms" if "beside_ms" in row else ""
    least = row["cosine"].get("least") if row["cosine"] else None
    return [
        f"{row['bulk_tokens_per_s']:,}",
        ratio,
        ms(row["query_ms"], 50),
        beside,
        f"{row['pss_mb']:,} MB",
        f"{row['start_s']:.1f} s",
        "" if least is None else f"{least:.5f}",
    ]


def limits() -> str:
    """What one core and all can do, and the least times that follow from it."""
    found = result("limit")
    if found is None:
        return not_measured("limit")
    machine = found["results"]["machine"]
    rows = [
        [f"products in {name}", f"{rate:,.0f} G operations/s", f"{machine['gops_all_cores'][name]:,.0f} G operations/s"]
        for name, rate in machine["gops_one_core"].items()
    ]
    rows += [
        [f"reading {size} MB", f"{rate:,.1f} GB/s", f"{machine['reading_gb_per_s_all_cores_by_mb'][size]:,.1f} GB/s"]
        for size, rate in machine["reading_gb_per_s_one_core_by_mb"].items()
    ]
    missing = "".join(f"{library} not measured: {reason}\n\n" for library, reason in machine["not_measured"].items())
    head = markdown(["", "one core", f"all {machine['cores']} cores, at the same time"], rows)
    return f"{head}\n{missing}{least_times(found['results']['models'])}\n{measured_on(found)}\n"


def least_times(models: dict[str, Any]) -> str:
    names = ["least time of one query", "precision", "one core", "all cores"]
    rows: list[list[str]] = []
    for name, model in models.items():
        if "error" in model:
            rows.append([name, *failed(model, len(names) - 1)])
            continue
        for precision, one in model["least_ms_one_core"].items():
            tokens = " / ".join(one)
            both = [" / ".join(f"{t:g}" for t in each.values()) for each in (one, model["least_ms_all_cores"][precision])]
            rows.append([f"{name}, {tokens} tokens", precision, *(f"{times} ms" for times in both)])
    return markdown(names, rows)


def measured_on(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores (shared, noisy), Linux {machine['kernel'].split('-')[0]},"
        f" Python {machine['python']}, {found['date']}, commit {found['commit']}."
    )
