"""How soon another worker stands in for one that was killed in the middle of its work, with MiniLM, queries and bulk work as in
chaos.py, whose loads these are.

recovery: from sending SIGKILL to a worker to the router's having an answer of the worker that was started in its place;
ready: from there to the router's knowing that worker.

The router is asked for its status every few milliseconds, which is as exact as that is. Every vector that queries and the bulk
client get is compared with an undisturbed pool's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import chaos
from common import in_ms, loads, sleep_until, wait_for_workers, write
from embedpool import Pool

KILLS, PERIOD_S = 12, 2.0  # a worker that served for less than a second is started again later
LOOK_S = 0.002
LONGEST_S = 20.0


def workers(pool: Pool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(pool.status(timeout_s=10))["workers"]
    return found


def kill(pool: Pool, rng: random.Random) -> dict[str, float]:
    """Kills a worker that runs a job; milliseconds to its successor's being there, and having answered."""
    running = [worker for worker in workers(pool) if worker["state"] == "busy"] or workers(pool)
    victim = rng.choice(running)
    began = time.monotonic()
    os.kill(victim["pid"], signal.SIGKILL)
    ready_ms = 0.0
    while (took_ms := (time.monotonic() - began) * 1e3) < LONGEST_S * 1e3:
        # Between the two there is none of this index.
        for successor in [worker for worker in workers(pool) if worker["index"] == victim["index"]]:
            if successor["pid"] != victim["pid"] and successor["state"] in ("idle", "busy"):
                ready_ms = ready_ms or took_ms
                if successor["jobs_done"]:
                    return {"ready_ms": ready_ms, "answered_ms": took_ms}
        time.sleep(LOOK_S)
    raise RuntimeError(f"no successor of worker {victim['index']} answered within {LONGEST_S:g} s")


def measure(given: argparse.Namespace, known_path: str) -> dict[str, Any]:
    seconds = (given.kills + 1) * PERIOD_S
    rng, kills = random.Random(given.seed), []
    with Pool(chaos.MODEL, workers=given.workers) as pool:
        wait_for_workers(pool, given.workers)
        order = {"endpoint": pool.endpoint, "known": known_path, "seconds": seconds, "seed": given.seed, "per_s": given.queries}
        with loads(chaos.__file__, [order | {"role": "queries"}, order | {"role": "bulk"}]) as started:
            begin_at = time.monotonic() + 0.1
            for load in started:
                load.begin(begin_at)
            for i in range(1, given.kills + 1):
                sleep_until(begin_at + i * PERIOD_S)
                kills.append(kill(pool, rng))
            queries, bulk = (load.saw(within_s=seconds + 60) for load in started)
    clients = chaos.seen({"queries": queries, "bulk": bulk})
    return {
        "kills": len(kills),
        "ready_ms": in_ms(one["ready_ms"] for one in kills),
        "answered_ms": in_ms(one["answered_ms"] for one in kills),
        "answered_ms_of_each_kill": [round(one["answered_ms"], 1) for one in kills],
        "clients": {name: clients[name] for name in ("queries", "failed", "wrong_rows", "rows_compared")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--queries", type=float, default=50.0, help="per second")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and victims")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="embedpool-bench-") as made:
        known_path = str(Path(made) / "known.npz")
        chaos.known_vectors(known_path)
        found = measure(given, known_path)
    write("recovery", (__doc__ or "").strip(), {"model": chaos.MODEL, "workers": given.workers, **found})


if __name__ == "__main__":
    main()
