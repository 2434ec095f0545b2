"""Queries beside bulk work: what each costs the other, with MiniLM.

query: from the instant at which a query is due (a Poisson process of QUERIES per second, whatever became of those before it)
to its vector's being in the hands of AsyncClient.embed_query's caller;
bulk: tokens that the router's counters say were computed between two instants, less those of the queries answered in between;
a query's worker time: processor time of the workers between two instants, divided by the queries answered, while there is no
bulk work.

Every repeat has a pool of its own and measures queries alone, bulk alone, and both, in an order that rotates. Queries are
made by one process, each bulk client (embed_documents over DOCUMENTS docstrings, again and again) is another. A phase is about
as long as it takes the bulk clients to be through with their texts, which are handed out longest first.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import (
    arrivals,
    busy_s,
    cpu_s,
    in_ms,
    loads,
    median,
    run_open_loop,
    sleep_until,
    told_to_begin,
    wait_for_workers,
    write,
)
from embedpool import AsyncClient, Client, Pool
from embedpool.docstrings import docstrings

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import router_of, workers_of  # noqa: E402 - found by the path that is set above

MODEL = "minilm"
DOCUMENTS = 600  # of each bulk client
RAMP_TOKENS = 3000  # of bulk work done before the time is taken: the queue is full by then
LONGEST_RAMP_S = 60.0
ORDERS = (("queries", "bulk", "both"), ("bulk", "both", "queries"), ("both", "queries", "bulk"))


# ── loads ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def queries_load(order: dict[str, Any]) -> None:
    texts = json.loads(Path(order["texts"]).read_text())["queries"]

    async def ask(pool: AsyncClient, i: int) -> str:
        await pool.embed_query(texts[(i + order["seed"] * 1000) % len(texts)])
        return "done"

    due_s = arrivals(order["per_s"], order["seconds"], order["seed"])
    run_open_loop(order["endpoint"], 1, due_s, ask, order["path"])


def bulk_load(order: dict[str, Any]) -> None:
    """Until it is told to end. Clients have different texts: equal ones that wait together would be computed once for all."""
    texts = json.loads(Path(order["texts"]).read_text())["documents"]
    texts = texts[order["client"] * DOCUMENTS : (order["client"] + 1) * DOCUMENTS]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what is still open is cancelled on the way out
    with Client(order["endpoint"]) as pool:
        pool.model(timeout_s=30)
        told_to_begin()
        while True:
            pool.embed_documents(texts)


# ── one phase ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Usage:
    """Counts that only grow, at one instant."""

    at: float
    tokens: int
    answered: int
    workers_s: float
    router_s: float
    busy_s: float

    def since(self, before: Usage) -> Usage:
        return Usage(*(getattr(self, name) - getattr(before, name) for name in Usage.__annotations__))


@dataclass(frozen=True)
class Phase:
    """What one phase used, and its queries' latencies (none for bulk alone)."""

    used: Usage
    ms: np.ndarray
    lag_ms: np.ndarray
    load_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.used.tokens / self.used.at

    @property
    def others_cores(self) -> float:
        """How many cores' time neither the pool nor the loads used: that of other programs, and of other machines (steal)."""
        return (self.used.busy_s - self.used.workers_s - self.used.router_s - self.load_s) / self.used.at


def usage(pool: Pool) -> Usage:
    counters = json.loads(pool.status())["counters"]
    workers, router = cpu_s(workers_of(pool.pid)), cpu_s([router_of(pool.pid)])
    return Usage(time.monotonic(), counters["tokens"], counters["answered"], workers, router, busy_s())


def measure(pool: Pool, what: str, given: argparse.Namespace, texts: str, seed: int) -> Phase:
    common = {"endpoint": pool.endpoint, "texts": texts}
    bulk_orders = [] if what == "queries" else [common | {"role": "bulk", "client": i} for i in range(given.bulk_clients)]
    query = common | {"role": "queries", "per_s": given.queries, "seconds": given.seconds, "seed": seed}
    with loads(__file__, bulk_orders) as bulk, loads(__file__, [] if what == "bulk" else [query]) as queries:
        tokens = json.loads(pool.status())["counters"]["tokens"]
        for load in bulk:
            load.begin(0.0)
        ramp_until = time.monotonic() + LONGEST_RAMP_S
        while bulk and json.loads(pool.status())["counters"]["tokens"] < tokens + RAMP_TOKENS:
            if time.monotonic() > ramp_until or any(load.process.poll() is not None for load in bulk):
                raise RuntimeError("the bulk clients do not get their work done")
            time.sleep(0.05)
        begin_at = time.monotonic() + 0.1
        for load in queries:
            load.begin(begin_at)
        sleep_until(begin_at)
        before, load_s = usage(pool), cpu_s(load.pid for load in bulk)
        sleep_until(begin_at + given.seconds)
        used, load_s = usage(pool).since(before), cpu_s(load.pid for load in bulk) - load_s
        found: dict[str, Any] = {"ms": np.empty(0), "lag_ms": np.empty(0), "cpu_s": 0.0}
        for load in queries:
            found = load.saw(within_s=60)
    if queries and set(found["outcome"]) != {"done"}:
        raise RuntimeError(f"queries were not answered: {sorted(set(found['outcome']))}")
    time.sleep(0.5)  # what was cancelled at the end of the bulk clients runs out
    return Phase(used, found["ms"], found["lag_ms"], load_s + float(found["cpu_s"]))


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def repeat(number: int, given: argparse.Namespace, texts: str) -> dict[str, Phase]:
    with Pool(MODEL, workers=given.workers) as pool:
        wait_for_workers(pool, given.workers)
        words = json.loads(Path(texts).read_text())
        pool.embed_documents(words["documents"][:200])  # the cost model and the allocators settle
        for text in words["queries"][:50]:
            pool.embed_query(text)
        return {what: measure(pool, what, given, texts, number) for what in ORDERS[number % len(ORDERS)]}


def row(phases: dict[str, Phase], given: argparse.Namespace) -> dict[str, float]:
    """One repeat in numbers."""
    alone, bulk, both = phases["queries"], phases["bulk"], phases["both"]
    worker_ms = alone.used.workers_s * 1e3 / alone.used.answered
    share = given.queries * worker_ms / 1e3 / given.workers
    beside = (both.used.tokens - alone.used.tokens / alone.used.answered * len(both.ms)) / both.used.at
    return {
        "p95_ratio": in_ms(both.ms)["p95"] / in_ms(alone.ms)["p95"],
        "bulk_tokens_per_s_alone": bulk.tokens_per_s,
        "bulk_tokens_per_s_beside_queries": beside,
        "query_worker_ms": worker_ms,
        "queries_share": share,
        "bulk_kept": beside / (bulk.tokens_per_s * (1 - share)),
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value) if value > 1000 else round(value, 3) for name, value in values.items()}


def results(repeats: list[dict[str, Phase]], given: argparse.Namespace) -> dict[str, Any]:
    rows = [row(found, given) for found in repeats]
    middle = {name: median([one[name] for one in rows]) for name in rows[0]}
    latencies = {
        name: [in_ms(found[what].ms) for found in repeats] for name, what in (("alone", "queries"), ("beside_bulk", "both"))
    }
    lags = {what: in_ms(np.concatenate([found[what].lag_ms for found in repeats])) for what in ("queries", "both")}
    others = {what: median([found[what].others_cores for found in repeats]) for what in ORDERS[0]}
    return {
        "model": MODEL,
        "workers": given.workers,
        "queries_per_s": given.queries,
        "bulk_clients": given.bulk_clients,
        "seconds_of_each_phase": given.seconds,
        "queries_ms": {name: {key: median([one[key] for one in each]) for key in each[0]} for name, each in latencies.items()},
        "queries_ms_of_each_repeat": latencies,
        **rounded(middle),
        "of_each_repeat": [rounded(one) for one in rows],
        "lag_of_the_load_itself_ms": lags,
        "cores_used_by_others": rounded(others),
        "goals": {
            "p95 beside bulk <= 2.5 x alone": middle["p95_ratio"] <= 2.5,
            "bulk >= 80 % of what queries leave it": middle["bulk_kept"] >= 0.8,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each of the three phases")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--queries", type=float, default=50.0, help="per second")
    parser.add_argument("--bulk-clients", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--raw", help="where to keep every latency (.npz)")
    parser.add_argument("--load", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        (queries_load if given.load["role"] == "queries" else bulk_load)(given.load)
        return
    docs = docstrings(DOCUMENTS * given.bulk_clients)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as texts:
        json.dump({"queries": [doc.summary for doc in docs], "documents": [doc.text for doc in docs]}, texts)
        texts.flush()
        repeats = [repeat(i, given, texts.name) for i in range(given.repeats)]
    if given.raw:
        raw: dict[str, Any] = {f"{what}_{i}": phase.ms for i, found in enumerate(repeats) for what, phase in found.items()}
        np.savez(given.raw, **raw)
    write("mixed", " ".join((__doc__ or "").split()), results(repeats, given))


if __name__ == "__main__":
    main()
