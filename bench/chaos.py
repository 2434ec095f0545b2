"""Workers that are killed, or stopped, every PERIOD seconds, beside queries and bulk work with MiniLM: what clients see.

latency: from the instant at which a query is due (a Poisson process of QUERIES per second) to its vector's being in the hands
of AsyncClient.embed_query's caller;
added: the latency of the slowest query under faults, less the 99th percentile (and the slowest) of the same load on the same
pool before the first fault.

Every vector, of queries and of the bulk client (embed_documents over docstrings, again and again), is compared with the one
that another, undisturbed pool gave, byte by byte. A request fails if its call raises. SIGKILL and SIGSTOP have a run
each, on a pool of its own; under SIGSTOP the pool's `hang_s` is 1 second, and no worker is sent SIGCONT.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from common import arrivals, in_ms, loads, run_open_loop, sleep_until, told_to_begin, wait_for_workers, write
from embedpool import AsyncClient, Client, Pool
from embedpool.docstrings import docstrings
from embedpool.errors import EmbedpoolError

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import workers_of  # noqa: E402 - found by the path that is set above

MODEL = "minilm"
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
HANG_S = 1.0
BULK_TEXTS = 256  # of one call: about two seconds of both workers, so that calls are checked all the time
MOST_ADDED_S = 1.5
COUNTERS = ("requests", "answered", "refused", "requeued", "late_answers")


# ── loads ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def queries_load(order: dict[str, Any]) -> None:
    texts, wanted = known(order, "queries")

    async def ask(pool: AsyncClient, i: int) -> str:
        try:
            found = await pool.embed_query(texts[i % len(texts)])
        except EmbedpoolError as error:
            print(f"query {i} failed: {error!r}", file=sys.stderr)
            raise
        return "done" if found.tobytes() == wanted[i % len(texts)].tobytes() else "wrong"

    run_open_loop(order["endpoint"], 1, arrivals(order["per_s"], order["seconds"], order["seed"]), ask, order["path"])


def bulk_load(order: dict[str, Any]) -> None:
    """One call after the other until the time is over; saves each one's outcome ("done" or an error's code) and wrong rows."""
    texts, wanted = known(order, "documents")
    outcome, wrong, ms = list[str](), list[int](), list[float]()
    with Client(order["endpoint"]) as pool:
        pool.model(timeout_s=30)
        end_at, start = told_to_begin() + order["seconds"], 0
        while (began_at := time.monotonic()) < end_at:
            rows = [(start + i) % len(texts) for i in range(BULK_TEXTS)]
            try:
                found = pool.embed_documents([texts[row] for row in rows])
                outcome.append("done")
                wrong.append(int((found.view(np.uint32) != wanted[rows].view(np.uint32)).any(axis=1).sum()))
            except EmbedpoolError as error:
                print(f"bulk call {len(outcome)} failed: {error!r}", file=sys.stderr)
                outcome.append(error.code)
                wrong.append(0)
            ms.append((time.monotonic() - began_at) * 1e3)
            start += BULK_TEXTS
    np.savez(order["path"], outcome=np.array(outcome), wrong=np.array(wrong), ms=np.array(ms))


def known(order: dict[str, Any], kind: str) -> tuple[list[str], np.ndarray]:
    """The texts, and the vectors that they have to get."""
    with np.load(order["known"]) as file:
        return json.loads(str(file["texts"]))[kind], file[kind]


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def strike(pool: Pool, number: signal.Signals, rng: random.Random) -> int:
    """Sends the signal to a random worker that runs; how many ran."""
    victims = [pid for pid in workers_of(pool.pid) if runs(pid)]
    if victims:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(victims), number)
    return len(victims)


def runs(pid: int) -> bool:
    """Whether it is neither stopped nor ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TtZX"
    return False


def one_load(pool: Pool, given: argparse.Namespace, known_path: str, seconds: float, fault: str) -> dict[str, Any]:
    """The load for so many seconds, with faults if there are to be; what the loads saw, and the strikes."""
    order = {"endpoint": pool.endpoint, "known": known_path, "seconds": seconds, "seed": given.seed, "per_s": given.queries}
    strikes, rng = list[int](), random.Random(given.seed)
    with loads(__file__, [order | {"role": "queries"}, order | {"role": "bulk"}]) as started:
        begin_at = time.monotonic() + 0.1
        for load in started:
            load.begin(begin_at)
        for i in range(1, int(seconds / given.period) + 1 if fault else 0):
            sleep_until(begin_at + i * given.period)
            strikes.append(strike(pool, SIGNALS[fault], rng))
        queries, bulk = (load.saw(within_s=seconds + 180) for load in started)
    return {"queries": queries, "bulk": bulk, "strikes": strikes}


def known_vectors(path: str) -> None:
    """Saves every text's vector, as a pool gives it that nobody disturbs."""
    docs = docstrings(2000)
    texts = {"queries": list(dict.fromkeys(doc.summary for doc in docs)), "documents": [doc.text for doc in docs]}
    with Pool(MODEL) as pool:
        queries = np.stack([pool.embed_query(text) for text in texts["queries"]])
        np.savez(path, texts=json.dumps(texts), queries=queries, documents=pool.embed_documents(texts["documents"]))


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def seen(found: dict[str, Any]) -> dict[str, Any]:
    """One load in numbers."""
    queries, bulk = found["queries"], found["bulk"]
    outcomes, calls = Counter(queries["outcome"].tolist()), Counter(bulk["outcome"].tolist())
    return {
        "queries": len(queries["ms"]),
        "queries_ms": in_ms(queries["ms"]),
        "queries_over_1_s": int((queries["ms"] > 1000).sum()),
        "bulk_calls": len(bulk["ms"]),
        "bulk_call_ms": in_ms(bulk["ms"]),
        "failed": {code: n for code, n in (outcomes + calls).items() if code not in ("done", "wrong")},
        "wrong_rows": outcomes["wrong"] + int(bulk["wrong"].sum()),
        "rows_compared": outcomes["done"] + outcomes["wrong"] + BULK_TEXTS * calls["done"],
    }


def run(fault: str, given: argparse.Namespace, known_path: str, raw: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"hang_s": HANG_S} if fault == "stop" else {}
    with Pool(MODEL, workers=given.workers, **settings) as pool:
        wait_for_workers(pool, given.workers)
        calm = one_load(pool, given, known_path, given.calm, "")
        struck = one_load(pool, given, known_path, given.duration, fault)
        status = json.loads(pool.status(timeout_s=30))
    raw |= {f"{fault}_{when}_ms": found["queries"]["ms"] for when, found in (("calm", calm), ("struck", struck))}
    raw |= {f"{fault}_{when}_due_s": found["queries"]["due_s"] for when, found in (("calm", calm), ("struck", struck))}
    before, under = seen(calm), seen(struck)
    slowest = int(np.argmax(struck["queries"]["ms"]))
    return {
        "before": before,
        "under_faults": under,
        "slowest_was_due_s": round(float(struck["queries"]["due_s"][slowest]), 2),
        "added_s": {
            "over_p99": round((under["queries_ms"]["max"] - before["queries_ms"]["p99"]) / 1e3, 3),
            "over_max": round((under["queries_ms"]["max"] - before["queries_ms"]["max"]) / 1e3, 3),
        },
        "workers_that_ran_at_each_strike": " ".join(map(str, struck["strikes"])),
        "workers_at_end": [{name: worker[name] for name in ("state", "restarts")} for worker in status["workers"]],
        "counters": {name: status["counters"][name] for name in COUNTERS},
    }


def goals(fault: str, found: dict[str, Any]) -> dict[str, bool]:
    """The fault-free part counts too: it must not fail either."""
    most_s = MOST_ADDED_S + (HANG_S if fault == "stop" else 0.0)
    return {
        f"{fault}: 0 failed": not found["under_faults"]["failed"] and not found["before"]["failed"],
        f"{fault}: 0 wrong": not found["under_faults"]["wrong_rows"] and not found["before"]["wrong_rows"],
        f"{fault}: worst added <= {most_s:g} s": found["added_s"]["over_p99"] <= most_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=40.0, help="seconds of each run with faults")
    parser.add_argument("--calm", type=float, default=15.0, help="seconds of the same load before, without faults")
    parser.add_argument("--period", type=float, default=2.0, help="seconds between faults")
    parser.add_argument("--signals", nargs="+", choices=tuple(SIGNALS), default=tuple(SIGNALS))
    parser.add_argument("--queries", type=float, default=50.0, help="per second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and victims")
    parser.add_argument("--raw", help="where to keep every latency (.npz)")
    parser.add_argument("--load", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        (queries_load if given.load["role"] == "queries" else bulk_load)(given.load)
        return
    raw: dict[str, Any] = {}
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        known_vectors(file.name)
        runs = {fault: run(fault, given, file.name, raw) for fault in given.signals}
    if given.raw:
        np.savez(given.raw, **raw)
    write(
        "chaos",
        " ".join((__doc__ or "").split()),
        {
            "model": MODEL,
            "workers": given.workers,
            "queries_per_s": given.queries,
            "period_s": given.period,
            "duration_s": given.duration,
            "seed": given.seed,
            **runs,
            "goals": {name: met for fault, found in runs.items() for name, met in goals(fault, found).items()},
        },
    )


if __name__ == "__main__":
    main()
