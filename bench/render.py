"""Writes the tables of README.md and bench/README.md, and the pictures, from bench/results/*.json; `--check` only says if they
are current. A picture names the result that it was drawn from: another run's is found out without drawing it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import render_peers
from aarch64_page import aarch64_table
from findings import RESULTS, Row, markdown, measured_on, result, source_of, spread
from quality_page import in_short, of_quality, quality_table, unknown_of
from scale_page import memory_table, of_delivery, of_growth, of_memory, of_recovery, of_startup
from soak_page import lines_table, of_soak

HERE = Path(__file__).parent
BEGIN, END = "<!-- {}: made by bench/render.py -->\n", "<!-- end of {} -->"
PICTURES = ("quality", "growth", "soak")


def table() -> str:
    """The numbers as Markdown."""
    rows = [*of_overhead(), *of_router(), *of_bulk(), *of_quality(result("quality")["results"])]
    rows += [*of_queries(), *of_mixed(), *of_chaos()]
    rows += [*of_recovery(), *of_overload(), *of_delivery(), *of_memory(), *of_startup()]
    rows += [*of_soak(), *of_growth(), *of_gateway()]
    rows += of_bridge()
    found = markdown(("what", "median", "repeats from – to", "goal"), rows)
    return f"{found}\n\n{measured_on(result('overhead'))}\n"


def of_overhead() -> list[Row]:
    trip = result("overhead")["results"]
    p, trips = trip["round_trip_us"], trip["round_trip_p50_us_of_each_repeat"]
    rate, rates = trip["pipelined_requests_per_s"], trip["pipelined_requests_per_s_of_each_repeat"]
    return [
        ("one query through client, router and echo worker, p50", f"{p['p50_us']:,g} µs", spread(trips), "≤ 250 µs"),
        ("the same, p95 and p99", f"{p['p95_us']:,g} and {p['p99_us']:,g} µs", "", ""),
        *over_the_model(trip.get("query_over_tokenize_and_run", {})),  # a result of before has none
        ("single-text requests through the router, pipelined by one client", f"{rate:,} /s", spread(rates), ""),
    ]


def over_the_model(models: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for name, us in models.items():
        what = f"a query of {us['tokens']:g} tokens, one at a time, {name}: over tokenising and running it"
        rows.append((f"{what}, p50", f"{us['p50_us']:,.0f} µs", spread(us["p50_us_of_each_repeat"]), "≤ 300 µs"))
        rows.append(("the same, p95 and p99", f"{us['p95_us']:,.0f} and {us['p99_us']:,.0f} µs", "", "p99 ≤ 1,000 µs"))
    return rows


def of_router() -> list[Row]:
    found = result("router")["results"]
    bare, repeats = found["bare"], found["of_each_repeat"]["bare"]
    rates, us = [each["requests_per_s"] for each in repeats], [each["router_us"] for each in repeats]
    memory = f"{bare['router_mb_early']:.1f} and {bare['router_mb_at_end']:.1f} MB"
    return [
        (f"the same by {found['sessions']} clients", f"{bare['requests_per_s']:,} /s", spread(rates), "≥ 20,000 /s"),
        ("the router's processor time for one of them", f"{bare['router_us']:.1f} µs", spread(us), "≤ 40 µs"),
        (f"the router's memory after 100,000 and {bare['requests'] // 1000 * 1000:,} of them", memory, "", "flat"),
    ]


def of_bulk() -> list[Row]:
    found = result("bulk")["results"]
    ratio, repeats, workers = found["ratio_to"], found["ratio_to_of_each_repeat"], found["workers"]
    against = {
        "plain": ("a plain loop over one session on one core", "≥ 1.9 ×"),
        "each": (f"{workers} such loops at once, each on its core", ""),
        "best": ("one such loop with all texts sorted by length and batched", ""),
    }
    rows = [(f"bulk, MiniLM, {workers} workers", f"{found['tokens_per_s']['pool']:,} tokens/s", "", "")]
    for name, (what, goal) in against.items():
        rows.append((f"bulk, against {what}", f"{ratio[name]:.2f} ×", spread(repeats[name]), goal))
    return rows


def of_mixed() -> list[Row]:
    found = result("mixed")["results"]
    alone, beside = found["queries_ms"]["alone"], found["queries_ms"]["beside_bulk"]
    ratios = [repeat["p95_ratio"] for repeat in found["of_each_repeat"]]
    kept = [repeat["bulk_kept"] for repeat in found["of_each_repeat"]]
    what = f"{found['queries_per_s']:g} queries/s beside {found['bulk_clients']} bulk clients, MiniLM"
    in_ms = f"{alone['p50']:.1f} and {alone['p95']:.1f}, {beside['p50']:.1f} and {beside['p95']:.1f} ms"
    return [
        (f"{what}: p95 to p95 alone", f"{found['p95_ratio']:.2f} ×", spread(ratios), "≤ 2.5 ×"),
        ("the same in ms: p50 and p95 alone, and beside bulk", in_ms, "", ""),
        ("bulk beside those queries, of what they leave it", f"{found['bulk_kept']:.0%}", spread(kept), "≥ 80 %"),
    ]


def of_queries() -> list[Row]:
    found = result("queries")["results"]["models"]
    rows: list[Row] = []
    for label, one in found.items():
        names = list(one["goal_ms"])
        what = f"{one['per_s']:g} queries/s, {label}: {', '.join(names)}"
        taken = ", ".join(f"{one['ms'][name]:.1f}" for name in names)
        last = names[-1]
        between = f"{last} {spread([repeat[last] for repeat in one['ms_of_each_repeat']])}"
        goal = ", ".join(f"{ms:g}" for ms in one["goal_ms"].values())
        rows.append((what, f"{taken} ms", between, f"≤ {goal} ms"))
    return rows


def of_chaos() -> list[Row]:
    found = result("chaos")["results"]
    rows: list[Row] = []
    for fault, how, goal in (("kill", "killed", "≤ 1.5 s"), ("stop", "stopped (SIGSTOP; `hang_s` 1)", "≤ 2.5 s")):
        run = found[fault]
        under, failed = run["under_faults"], sum(run["under_faults"]["failed"].values())
        what = f"a worker {how} every {found['period_s']:g} s for {found['duration_s']:g} s, under queries and bulk work"
        asked = f"{failed} of {under['queries'] + under['bulk_calls']:,}"
        compared = f"{under['wrong_rows']} of {under['rows_compared']:,}"
        rows.append((f"{what}: requests failed, and rows wrong", f"{asked}, {compared}", "", "0, 0"))
        rows.append(("the slowest query, beyond the p99 without faults", f"{run['added_s']['over_p99']:.2f} s", "", goal))
    return rows


def of_overload() -> list[Row]:
    found = result("overload")["results"]
    of, refused = found["goodput_of_capacity"], found["refusal_ms"]
    unanswered = sum(n for outcome, n in found["outcomes"].items() if outcome not in ("done", "late", "overloaded", "expired"))
    total, late = sum(found["outcomes"].values()), found["outcomes"].get("late", 0)
    what = f"{found['offered_of_capacity']:.0f} × what the pool can do, for {found['duration_s']:g} s"
    goodput = f"{of['beside_refusals']:.0%}, {of['alone']:.0%}"
    return [
        (f"{what}: requests without an answer, and answered too late", f"{unanswered}, {late} of {total:,}", "", "0"),
        ("answered in time, of capacity beside as many refusals, and alone", goodput, "", "≥ 90 %"),
        (
            "the same per core of the workers' time, of capacity alone",
            f"{found['goodput_per_worker_core_of_capacity']:.0%}",
            "",
            "",
        ),
        ("from being due to being refused, p50 and p95", f"{refused['p50']:.1f} and {refused['p95']:.1f} ms", "", "p50 ≤ 5 ms"),
    ]


def of_gateway() -> list[Row]:
    found = result("gateway")["results"]
    repeats = found["of_each_repeat"]
    rows: list[Row] = []
    for form, what in (("json", "/embed, JSON"), ("base64", "/v1/embeddings, base64"), ("raw", "/embed, plain bytes")):
        name, requests = f"{form}_added_ms", found[f"rate_{form}"]
        adds, rates = [each["latency"][name] for each in repeats], [each[f"rate_{form}"]["requests_per_s"] for each in repeats]
        rows.append((f"what HTTP adds to one query, p50: {what}", f"{found['latency'][name]:.2f} ms", spread(adds), "≤ 1.5 ms"))
        what = f"the same from {found['connections']} connections, one gateway"
        rows.append((what, f"{requests['requests_per_s']:,} /s", spread(rates), "≥ 1,500 /s"))
    used = found["rate_base64"]
    both = f"{used['gateway_us']:.0f} and {used['router_us']:.0f} µs"
    rows.append(("the gateway's and the router's processor time for one of them, base64", both, "", ""))
    for form, goal in (("npy", "≤ 10 ms"), ("base64", "≤ 25 ms")):
        large = [each["large"][f"{form}_added_ms"] for each in repeats]
        what = f"what HTTP adds to 1,000 vectors of 768 dimensions, {form}"
        rows.append((what, f"{found['large'][f'{form}_added_ms']:.1f} ms", spread(large), goal))
    return rows


def of_bridge() -> list[Row]:
    found = result("bridge")["results"]
    rows: list[Row] = []
    for size in (1, 32):
        part = f"texts_{size}"
        adds = [each[part]["added_ms"] for each in found["of_each_repeat"]]
        what = f"what `embedpool-bridge` adds to a request of {size} text{'s' if size > 1 else ''} of 768 dimensions, p50"
        rows.append((what, f"{found[part]['added_ms']:.2f} ms", spread(adds), "≤ 1 ms"))
    return rows


def models_table() -> str:
    """What models cost and what smaller weights lose, as Markdown."""
    found, quality = result("models"), result("quality")["results"]
    head = ("model", "prepared in", "on disk", "one worker", "each further", "worker starts in", "16 / 64 / 256 tokens")
    rows = []
    for label, row in found["results"].items():
        cosine, unknown = row.get("cosine"), "" if label.endswith(("p32", " f32")) else unknown_of(label)
        rows.append(
            (
                label,
                f"{row['prepare_s']:g} s",
                f"{row['artifact_mb']:,} MB",
                f"{row['one_worker_mb']:,} MB",
                f"**{row['further_worker_mb']:g} MB**",
                f"{row['start_s']:.2f} s",
                " / ".join(f"{ms:.1f}" for ms in list(row["run_ms"].values())[:3]) + " ms",
                f"{cosine['mean']:.4f}, at worst {cosine['least']:.4f}" if cosine else unknown,
                in_short(quality, label) or unknown,
            )
        )
    table = markdown((*head, "cosine to fp32", "nDCG@10, less fp32's"), rows)
    return f"{table}\n\n{measured_on(found)}\n"


TABLES: dict[str, Callable[[], str]] = {
    "numbers": table,
    "models": models_table,
    "quality": lambda: quality_table(result("quality")),
    "soak": lambda: lines_table(result("soak")),
    "peers": render_peers.peers,
    "limit": render_peers.limits,
}
SHARED = ("numbers", "models")
PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    HERE.parent / "README.md": {name: TABLES[name] for name in SHARED} | {"peers": render_peers.beside_others},
    HERE / "README.md": TABLES | {"aarch64": aarch64_table},
    HERE.parent / "docs/arm.md": {"memory": memory_table},
}


def rendered(page: Path) -> str:
    text = page.read_text()
    for name, made in PAGES[page].items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise SystemExit(f"{page} has no place for the {name}: {begin.strip()} … {end}")
        text = before + begin + "\n" + made() + "\n" + end + after
    return text


def stale_pictures() -> list[Path]:
    """Those that were drawn from another result, or not at all."""
    found = []
    for name in PICTURES:
        picture, drawn_from = HERE / f"{name}.png", source_of(RESULTS / f"{name}.json").encode()
        if not picture.exists() or drawn_from not in picture.read_bytes():
            found.append(picture)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    stale = [page for page in PAGES if rendered(page) != page.read_text()]
    pictures = stale_pictures()
    if given.check:
        sys.exit(f"not current: {', '.join(map(str, [*stale, *pictures]))}; run bench/render.py" if stale or pictures else 0)
    for page in stale:
        page.write_text(rendered(page))
        print(f"written: {page}")
    for picture in pictures:
        from plots import draw  # needs matplotlib (extra `bench`), which checking does not

        draw(picture)
        print(f"drawn: {picture}")


if __name__ == "__main__":
    main()
