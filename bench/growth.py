"""What a row, a text and a request cost as there are more of them: rows, tokens, workers, clients.

rows: from calling Client.embed_documents with so many texts of equal length to having the array, divided by the texts; MiniLM
up to thousands, the echo model, which computes next to nothing, up to 100,000;
tokens: from calling Client.embed with one text of so many tokens to having the array; MiniLM reads 256, EmbeddingGemma's shape
2,048;
workers, clients: the router's processor time per request as in router.py, with so many echo workers, and with so many clients.
Requests that wait together go to a worker together, which costs the router less: so OPEN_PER_WORKER are always open for each
worker, and OPEN for any number of clients; `thin` is what the same OPEN requests cost among few and many workers. Requests per
job are in the result. Workers are not pinned, since there are more of them than cores.

Medians over repeats.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import router
from common import Neighbours, median, wait_for_workers, write
from embedpool import Pool

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.fixtures import embeddinggemma  # noqa: E402 - found by the path that is set above
from tests.support import router_of, workers_of  # noqa: E402

PARTS = ("rows", "tokens", "workers", "clients")
ROWS = {"MiniLM": (1, 10, 100, 1000, 4000), "echo": (1, 10, 100, 1000, 10_000, 100_000)}
# Rows from – to whose cost per row is to be the same. Of the echo model also where a call's own cost is most of it.
JUDGED = (("MiniLM", 100, 4000), ("echo", 10_000, 100_000), ("echo", 100, 100_000))
TOKENS = {"MiniLM": (5, 16, 64, 256), "EmbeddingGemma-300M's shape, fp32": (5, 16, 64, 256, 1024, 2048)}
WORKERS, CLIENTS = (1, 4, 16, 64), (1, 4, 16, 64, 256)
OPEN, OPEN_PER_WORKER, REQUESTS = 256, 64, 40_000
CLIENTS_OF_WORKERS = 16
MOST_PROCESSES = 4  # of clients: their own cost is not the router's, but they share its cores
SEGMENT_BYTES = 192 << 20  # 100,000 rows of 384 dimensions
ROW_GROWTH, ROUTER_GROWTH = 1.10, 1.20
LEAST_S, MOST_REPEATS = 1.5, 30
WORDS = ("red", "blue", "green", "small", "large", "new", "old", "first", "last", "good", "long", "high", "low", "hot", "cold")


def text(words: int, number: int) -> str:
    """So many words that are a token each for MiniLM, and others than those of any other number."""
    rng = random.Random(number)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def letters(words: int, number: int) -> str:
    """The same for the made-up vocabulary, where every letter is a word."""
    rng = random.Random(number)
    return " ".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(words))


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(model: str, counts: Sequence[int]) -> dict[str, Any]:
    """µs per row at each count. A count is repeated until it has taken LEAST_S, three times at least."""
    found = {}
    name = "minilm" if model == "MiniLM" else "echo"
    with Pool(name, workers=2, segment_bytes=SEGMENT_BYTES, max_segment_bytes=SEGMENT_BYTES) as pool:
        wait_for_workers(pool, 2)
        pool.embed_documents([text(12, -i) for i in range(200)])
        used, number = Neighbours([router_of(pool.pid), *workers_of(pool.pid)]), 0
        for count in counts:
            times: list[float] = []
            while len(times) < 3 or (sum(times) < LEAST_S and len(times) < MOST_REPEATS):
                texts = [text(12, number + i) for i in range(count)]
                number += count
                began = time.perf_counter()
                pool.embed_documents(texts)
                times.append(time.perf_counter() - began)
            found[str(count)] = round(median(times) / count * 1e6, 2)
        neighbours = used.cores()
    return {"us_per_row": found, "cores_used_by_others": neighbours}


def growth(costs: dict[str, float], low: int, high: int) -> float:
    """The largest of the costs from `low` to `high` over the smallest."""
    within = [cost for count, cost in costs.items() if low <= int(count) <= high]
    return round(max(within) / min(within), 3)


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def tokens(label: str, model: str, lengths: Sequence[int], **settings: Any) -> dict[str, Any]:
    """Milliseconds of a text of so many tokens, by the model's own count."""
    made, found = (text if label == "MiniLM" else letters), {}
    with Pool(model, workers=1, **settings) as pool:
        around = read(pool, made(4, 0)) - 4  # what the tokenizer puts around any text
        for length in lengths:
            times, began_all = list[float](), time.perf_counter()
            while len(times) < 3 or (time.perf_counter() - began_all < LEAST_S and len(times) < MOST_REPEATS):
                one = made(length - around, len(times) + 1)
                began = time.perf_counter()
                pool.embed([one], timeout_s=120)
                times.append((time.perf_counter() - began) * 1e3)
            if read(pool, made(length - around, 0)) != length:
                raise RuntimeError(f"{label}: a text was to have {length} tokens")
            found[str(length)] = round(median(times), 2)
    return found


def read(pool: Pool, one: str) -> int:
    """How many tokens the model reads of a text."""
    before = json.loads(pool.status(timeout_s=30))["counters"]["tokens"]
    pool.embed([one], timeout_s=120)
    return int(json.loads(pool.status(timeout_s=30))["counters"]["tokens"] - before)


# ── workers and clients ──────────────────────────────────────────────────────────────────────────────────────────────


def router_us(workers: int, clients: int, open_requests: int, repeats: int) -> dict[str, Any]:
    processes = min(MOST_PROCESSES, clients)
    crowd = router.Crowd(processes, clients // processes, max(1, open_requests // clients))
    # One session more than clients: that of the pool itself.
    runs = [router.run("bare", REQUESTS, workers, crowd, pin=False, max_sessions=clients + 8) for _ in range(repeats)]
    names = ("router_us", "requests_per_s", "requests_per_job", "workers_us", "cores_used_by_others")
    return {name: median([run[name] for run in runs]) for name in names} | {
        "router_us_of_each_repeat": [run["router_us"] for run in runs]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of runs with workers and clients")
    parser.add_argument("--gemma", help="a ready directory of EmbeddingGemma's shape; made if not given")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="writes results/growth-part.json")
    given = parser.parse_args()
    wanted = given.only or PARTS
    found: dict[str, Any] = {"open_requests": OPEN, "open_requests_per_worker": OPEN_PER_WORKER}
    if "rows" in wanted:
        found["rows"] = {model: rows(model, counts) for model, counts in ROWS.items()}
    if "tokens" in wanted:
        found["tokens"] = all_tokens(given.gemma)
    if "workers" in wanted:
        many = {n: n * OPEN_PER_WORKER for n in WORKERS}
        found["workers"] = {str(n): router_us(n, CLIENTS_OF_WORKERS, most, given.repeats) for n, most in many.items()}
        found["thin"] = {str(n): router_us(n, CLIENTS_OF_WORKERS, OPEN, 1) for n in (WORKERS[0], WORKERS[-1])}
    if "clients" in wanted:
        found["clients"] = {str(n): router_us(2, n, OPEN, given.repeats) for n in CLIENTS}
    write("growth-part" if given.only else "growth", (__doc__ or "").strip(), found | {"grows": grows(found)})


def all_tokens(gemma: str | None) -> dict[str, Any]:
    place = Path(tempfile.mkdtemp(prefix="embedpool-bench-"))
    try:
        found, (small, large) = {}, TOKENS
        found[small] = tokens(small, "minilm", TOKENS[small])
        directory = gemma or str(embeddinggemma.directory(place / "embeddinggemma"))
        found[large] = tokens(large, directory, TOKENS[large], precision="fp32", cache=str(place / "cache"))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return found


def grows(found: dict[str, Any]) -> dict[str, Any]:
    """The largest cost over the smallest, what it may be, and whether it is so."""
    ratios = {
        f"rows, {model}, {low:,} to {high:,}": (growth(found["rows"][model]["us_per_row"], low, high), ROW_GROWTH)
        for model, low, high in JUDGED
        if "rows" in found
    }
    for what in ("workers", "clients"):
        if what in found:
            us = {n: one["router_us"] for n, one in found[what].items()}
            few, many = min(map(int, us)), max(map(int, us))
            ratios[f"router per request, {few} to {many} {what}"] = (growth(us, few, many), ROUTER_GROWTH)
    return {what: {"ratio": ratio, "most": most, "met": ratio <= most} for what, (ratio, most) in ratios.items()}


if __name__ == "__main__":
    main()
