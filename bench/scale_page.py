"""Rows of the table of numbers for delivery, memory, start-up, recovery and growth: pure, from result files to Markdown."""

from __future__ import annotations

from typing import Any

from findings import Row, markdown, measured_on, result, spread

MEMORY = (
    "MiniLM, package (weights of 8 bits, computed in fp32)",
    "EmbeddingGemma-300M's shape, fp32",
    "EmbeddingGemma-300M's shape, q8",
)


def of_delivery() -> list[Row]:
    found = result("delivery")["results"]
    shared, text = found["shared"], found["json"]
    what = f"{found['rows']:,} vectors of {found['dim']} dimensions ({found['megabytes']:.0f} MB)"
    rest = f"{shared['computing_ms']:.0f}, {shared['writing_ms']:.0f} and {shared['waiting_ms']:.0f} ms"
    others = f"{found['socket_ms']:.0f} and {text['encode_ms'] + text['decode_ms']:,.0f} ms"
    return [
        (
            f"{what}: from the last row's being written to the caller's having the array",
            f"{shared['after_last_ms']:.2f} ms",
            spread(found["after_last_ms_of_each_repeat"]),
            "≤ 3 ms",
        ),
        ("the same array through a Unix socket, and as JSON (orjson, both ways)", others, "", ""),
        ("the whole call, one echo worker: computing, normalising and writing, waiting for jobs", rest, "", ""),
    ]


def of_memory() -> list[Row]:
    found = result("models")["results"]
    rows: list[Row] = []
    for label in MEMORY:
        short, long = (found[label][name] for name in ("pool_mb", "pool_mb_long_texts"))
        listed = ", ".join(f"{mb:,}" for mb in short.values())
        counts = [int(n) for n in short]
        most = f"{max(counts)} after texts of 250 tokens: {long[str(max(counts))]:,} MB"
        what = f"memory (PSS) of all processes of a pool with {', '.join(map(str, counts))} workers, {label}"
        rows.append((what, f"{listed} MB", most, "≤ 50 MB for each further"))
    return rows


def memory_table() -> str:
    """What a board's memory must hold, by model and precision that ARM has, as Markdown. Measured on x86."""
    found = result("models")
    head = (
        "model",
        "on disk",
        "first worker, forkserver, weights",
        "each further worker",
        "supervisor and router",
        "4 workers",
    )
    rows = []
    for label, row in found["results"].items():
        if "openvino" in label:
            continue  # it has no wheel for aarch64
        short, long, first = row["pool_mb"], row["pool_mb_long_texts"], row["one_worker_mb"]
        further, rest = f"{row['further_worker_mb']:g} MB", f"{short['1'] - first} MB"
        four = f"{short['4']:,} MB, {long['4']:,} after texts of 250 tokens"
        rows.append((label, f"{row['artifact_mb']:,} MB", f"{first:,} MB", further, rest, four))
    return f"{markdown(head, rows)}\n\n{measured_on(found)}\n"


def of_startup() -> list[Row]:
    found = result("startup")["results"]
    rows: list[Row] = []
    for label, one in found["models"].items():
        steps = " + ".join(f"{one['steps_s'][name]:.2f}" for name in ("supervisor", "router", "worker", "first_answer"))
        what = f"from starting `embedpool serve`, its model prepared, to the first answer, {label}"
        rows.append((what, f"{one['start_s']:.2f} s", spread(one["start_s_of_each_pool"]), "≤ 1.5 s"))
        rows.append(("of that supervisor, router, first worker ready, first answer", f"{steps} s", "", ""))
        each = one["first_to_tenth_of_each_pool"]
        what = f"a fresh pool's first query to its tenth, {len(each)} pools, {label}"
        rows.append((what, f"{one['first_to_tenth']:.2f} ×", spread(each), "≤ 2 ×"))
    return rows


def of_recovery() -> list[Row]:
    found = result("recovery")["results"]
    each = found["answered_ms_of_each_kill"]
    what = f"from killing a worker under queries and bulk work to an answer of its successor, MiniLM, {found['kills']} times"
    return [(what, f"{found['answered_ms']['p50']:.0f} ms", spread(each), "")]


def of_growth() -> list[Row]:
    found = result("growth")["results"]
    rows: list[Row] = []
    for what, one in found["grows"].items():
        rows.append((f"the largest cost over the smallest: {what}", f"{one['ratio']:.2f} ×", "", f"≤ {one['most']:g} ×"))
    return [*rows, of_series("workers", found), of_series("clients", found)]


def of_series(name: str, found: dict[str, Any]) -> Row:
    series = found[name]
    us = ", ".join(f"{one['router_us']:.0f}" for one in series.values())
    per_job = ", ".join(f"{one['requests_per_job']:.1f}" for one in series.values())
    what = f"the router's processor time per request with {', '.join(series)} {name}"
    return (what, f"{us} µs", f"{per_job} requests per job", "")
