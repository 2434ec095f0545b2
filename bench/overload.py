"""Ten times the work that the pool can do, for a minute, with MiniLM: what is done, and how fast the rest is refused.

capacity: single-text requests of 30 tokens answered per second while AHEAD of them are always open;
goodput: requests answered with vectors within `timeout_s`, per second from the first one due to the last one due;
refusal: from the instant at which a request is due (a Poisson process in bursts of BURST_S, whatever became of those before it)
to the instant at which AsyncClient.embed has raised; and the same from the call of embed.

What makes 10 x capacity takes processor time from the workers of a machine with few cores, which a pool cannot help. Capacity
is therefore also measured beside the same load (same processes, same rate, same client) put on a router of ours that only
refuses: what is missing then is what sending and refusing so many requests costs, whoever refuses them. Goodput is compared
with both. Each is measured before and after the overload; the mean counts, because the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from common import (
    arrivals,
    busy_s,
    cpu_s,
    encoder_of,
    in_ms,
    loads,
    rss_bytes,
    run_open_loop,
    sleep_until,
    told_to_begin,
    wait_for_workers,
    write,
)
from embedpool import AsyncClient, Pool
from embedpool import protocol as wire
from embedpool.cli.demo import docstrings

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import router_of, workers_of  # noqa: E402 - found by the path that is set above

MODEL = "minilm"
TOKENS = 30
FACTOR = 10
LOADS = 2  # processes that overload: the client's share of one must stay far from a whole core
CLIENTS = 4  # in each
BURST_S = 0.005  # requests due within this come at once: one by one they cost the load, and the router, twice the time
AHEAD = 16  # open requests of each client that measures capacity: 64 in all, so that workers always find full batches
LIMITS = wire.Limits(8192, 16 << 20, 1_000_000, 64 << 20)


# ── loads ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def overload_load(order: dict[str, Any]) -> None:
    texts = json.loads(Path(order["texts"]).read_text())

    async def ask(pool: AsyncClient, i: int) -> str:
        await pool.embed([texts[i % len(texts)]], timeout_s=order["timeout_s"])
        return "done"

    due_s = [math.ceil(due / BURST_S) * BURST_S for due in arrivals(order["per_s"], order["seconds"], order["seed"])]
    run_open_loop(order["endpoint"], CLIENTS, due_s, ask, order["path"])


def closed_load(order: dict[str, Any]) -> None:
    """AHEAD requests of each client always open, until the time is over; saves how many were answered within it."""
    texts = json.loads(Path(order["texts"]).read_text())

    async def ask_on(pool: AsyncClient, first: int, end_at: float) -> int:
        answered = 0
        while True:
            await pool.embed([texts[(first + answered) % len(texts)]])
            if time.monotonic() >= end_at:
                return answered
            answered += 1

    async def all_of_them() -> None:
        pools = [AsyncClient(order["endpoint"]) for _ in range(CLIENTS)]
        for pool in pools:
            await pool.model(timeout_s=30)
        end_at, used_s = told_to_begin() + order["seconds"], time.process_time()
        answered = await asyncio.gather(*[ask_on(pool, 97 * i, end_at) for pool in pools for i in range(AHEAD)])
        np.savez(order["path"], answered=sum(answered), cpu_s=time.process_time() - used_s)
        for pool in pools:
            await pool.close()

    asyncio.run(all_of_them())


def refuser_load(order: dict[str, Any]) -> None:
    """A router that gives sessions and refuses every request, until it hears nothing more."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.setsockopt(zmq.SNDHWM, 0)
        sock.bind(order["endpoint"])
        told_to_begin()
        patience_ms = 60_000
        while sock.poll(patience_ms):
            patience_ms = 3000
            sender, frame = sock.recv_multipart()[:2]
            match wire.decode(frame) if frame else None:
                case wire.Embed(id=id):
                    answer: wire.Message = wire.Refused(id, "overloaded", "no", retryable=True, retry_after_ms=100)
                case wire.Hello():
                    answer = wire.Welcome(wire.VERSION, LIMITS, (wire.ModelCard(MODEL, 384, 256, "none"),))
                case None:
                    answer = wire.Who(1)
                case _:
                    continue
            sock.send_multipart([sender, wire.encode(answer)])
    np.savez(order["path"], cpu_s=time.process_time())


LOADS_BY_ROLE = {"overload": overload_load, "closed": closed_load, "refuser": refuser_load}


# ── what is measured ─────────────────────────────────────────────────────────────────────────────────────────────────


def capacity(pool: Pool, seconds: float, texts: str) -> float:
    """Requests per second that the pool answers while there are always more."""
    order = {"role": "closed", "endpoint": pool.endpoint, "texts": texts, "seconds": seconds}
    with loads(__file__, [order]) as (load,):
        load.begin(time.monotonic())
        return float(load.saw(within_s=seconds + 60)["answered"]) / seconds


@contextmanager
def beside_refusals(texts: str, per_s: float, seconds: float, timeout_s: float) -> Iterator[dict[str, float]]:
    """The overload's own processes, put on a router that refuses everything, while the block runs; their processor shares."""
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="embedpool-bench-", dir="/dev/shm") as directory:
        endpoint = f"ipc://{directory}/refuser.sock"
        with loads(__file__, [{"role": "refuser", "endpoint": endpoint}]) as (refuser,):
            refuser.begin(0.0)
            with loads(__file__, overload_orders(endpoint, texts, per_s, seconds + 4, timeout_s)) as started:
                begin_at = time.monotonic()
                for load in started:
                    load.begin(begin_at)
                time.sleep(1)  # the other load starts in this time, and ends before this one does
                yield shares
                found = [load.saw(within_s=60) for load in started]
            shares["clients"] = sum(float(saw["cpu_s"]) for saw in found) / (seconds + 4)
            shares["refuser"] = float(refuser.saw(within_s=30)["cpu_s"]) / (seconds + 4)


def overload_orders(endpoint: str, texts: str, per_s: float, seconds: float, timeout_s: float) -> list[dict[str, Any]]:
    common = {"role": "overload", "endpoint": endpoint, "texts": texts, "seconds": seconds, "timeout_s": timeout_s}
    return [common | {"per_s": per_s / LOADS, "seed": seed} for seed in range(LOADS)]


def overloaded(pool: Pool, texts: str, per_s: float, given: argparse.Namespace) -> dict[str, Any]:
    """The overload itself; what came of its requests, and the router's size every second."""
    router, workers = router_of(pool.pid), workers_of(pool.pid)
    sizes = []
    with loads(__file__, overload_orders(pool.endpoint, texts, per_s, given.duration, given.timeout_s)) as started:
        begin_at = time.monotonic() + 0.1
        for load in started:
            load.begin(begin_at)
        used = {"router": -cpu_s([router]), "workers": -cpu_s(workers), "machine": -busy_s()}
        for second in range(1, int(given.duration) + 1):
            sleep_until(begin_at + second)
            sizes.append(rss_bytes(router))
        used["router"] += cpu_s([router])
        used["workers"] += cpu_s(workers)
        used["machine"] += busy_s()
        found = [load.saw(within_s=60) for load in started]
    used["clients"] = sum(float(saw["cpu_s"]) for saw in found)
    joined = {name: np.concatenate([saw[name] for saw in found]) for name in ("due_s", "ms", "lag_ms", "outcome")}
    return joined | {"sizes": sizes, "cores": {name: round(seconds / given.duration, 3) for name, seconds in used.items()}}


# ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────────────


def texts_of(tokens: int, count: int) -> list[str]:
    """Beginnings of docstrings of so many tokens, the special ones included."""
    encoder, found = encoder_of(MODEL), list[str]()
    for doc in docstrings(2000):
        words = doc.text.split(" ")
        for n in range(8, len(words) + 1):
            text = " ".join(words[:n])
            length = len(encoder.tokens([text], "right")[0])
            if length >= tokens:
                found += [text] * (length == tokens)
                break
        if len(found) == count:
            break
    return found


def thirds(sizes: list[int]) -> dict[str, float]:
    """The router's size in MB: means of the first and the last third, and their ratio."""
    third = max(len(sizes) // 3, 1)
    first, last = sum(sizes[:third]) / third / 1e6, sum(sizes[-third:]) / third / 1e6
    return {"first_third": round(first, 2), "last_third": round(last, 2), "ratio": round(last / first, 4)}


def results(found: dict[str, Any], capacities: dict[str, list[float]], given: argparse.Namespace) -> dict[str, Any]:
    outcomes = Counter(found["outcome"].tolist())
    refused = found["outcome"] == "overloaded"
    goodput = outcomes["done"] / given.duration
    alone, beside = (float(np.mean(capacities[name])) for name in ("alone", "beside_refusals"))
    memory = thirds(found["sizes"])
    refusal_ms = in_ms(found["ms"][refused]) if refused.any() else {}
    answered_by_pool = set(outcomes) <= {"done", "overloaded", "expired"}
    return {
        "model": MODEL,
        "workers": given.workers,
        "tokens_of_a_request": TOKENS,
        "timeout_s": given.timeout_s,
        "duration_s": given.duration,
        "capacity_per_s": {name: [round(rate, 1) for rate in rates] for name, rates in capacities.items()},
        "offered_per_s": round(len(found["ms"]) / given.duration, 1),
        "offered_of_capacity": round(len(found["ms"]) / given.duration / alone, 2),
        "goodput_per_s": round(goodput, 1),
        "goodput_of_capacity": {"alone": round(goodput / alone, 3), "beside_refusals": round(goodput / beside, 3)},
        "outcomes": outcomes,
        "done_ms": in_ms(found["ms"][found["outcome"] == "done"]) if outcomes["done"] else {},
        "refusal_ms": refusal_ms,
        "refusal_from_the_call_ms": in_ms((found["ms"] - found["lag_ms"])[refused]) if refused.any() else {},
        "no_answer_ms": in_ms(found["ms"][found["outcome"] == "no_answer"]) if outcomes["no_answer"] else {},
        "lag_of_the_load_itself_ms": in_ms(found["lag_ms"]),
        "cores_in_use": found["cores"],
        "router_mb": memory,
        "goals": {
            "every request is done or refused by the pool": answered_by_pool,
            "the router's memory is flat (10 %)": memory["ratio"] <= 1.1,
            "goodput >= 90 % of capacity beside the same load": goodput >= 0.9 * beside,
            "median refusal <= 5 ms": bool(refusal_ms) and refusal_ms["p50"] <= 5,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of overload")
    parser.add_argument("--capacity-seconds", type=float, default=10.0, help="of each of the four measurements of capacity")
    parser.add_argument("--timeout-s", type=float, default=0.5, help="of each request of the overload")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--raw", help="where to keep every latency (.npz)")
    parser.add_argument("--load", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        LOADS_BY_ROLE[given.load["role"]](given.load)
        return
    capacities: dict[str, list[float]] = {"alone": [], "beside_refusals": []}
    shares: list[dict[str, float]] = []
    with tempfile.NamedTemporaryFile("w", suffix=".json") as texts, Pool(MODEL, workers=given.workers) as pool:
        json.dump(texts_of(TOKENS, 400), texts)
        texts.flush()
        wait_for_workers(pool, given.workers)
        capacity(pool, 2.0, texts.name)  # the cost model and the allocators settle

        def measure_capacity() -> None:
            capacities["alone"].append(capacity(pool, given.capacity_seconds, texts.name))
            per_s = FACTOR * capacities["alone"][0]
            with beside_refusals(texts.name, per_s, given.capacity_seconds, given.timeout_s) as share:
                capacities["beside_refusals"].append(capacity(pool, given.capacity_seconds, texts.name))
            shares.append(share)

        measure_capacity()
        found = overloaded(pool, texts.name, FACTOR * capacities["alone"][0], given)
        measure_capacity()
    if given.raw:
        np.savez(given.raw, **{name: found[name] for name in ("due_s", "ms", "lag_ms", "outcome", "sizes")})
    means = {name: round(float(np.mean([share[name] for share in shares])), 3) for name in shares[0]}
    write(
        "overload",
        " ".join((__doc__ or "").split()),
        results(found, capacities, given) | {"cores_in_use_beside_refusals": means},
    )


if __name__ == "__main__":
    main()
