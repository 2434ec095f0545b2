"""Ten times the work that the pool can do, for a minute, with MiniLM: what is done, and how fast the rest is refused.

capacity: single-text requests of 30 tokens answered per second while AHEAD of them are always open;
goodput: requests answered with vectors within `timeout_s` after they were due, per second from the first one due to the last;
refusal: from the instant at which a request is due (a Poisson process in bursts of BURST_S, whatever became of those before it)
to the instant at which its refusal has been read; and the same from the instant at which it was sent.

Clients speak the bare protocol; no two texts that wait at the same time are equal. What makes 10 x capacity takes time from the
workers of a machine with few cores, which a pool cannot help. Capacity is therefore also measured beside the same load
(same processes, same rate) put on a router of ours that only refuses: what is missing then is what sending and refusing so many
requests costs, whoever refuses them. Goodput is compared with both, and, per core of the workers' time, with capacity alone.
Each is measured before and after the overload; the mean counts, because the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from common import (
    all_computed,
    arrivals,
    busy_s,
    cpu_s,
    encoder_of,
    in_ms,
    loads,
    rss_bytes,
    sleep_until,
    told_to_begin,
    wait_for_workers,
    write,
)
from embedpool import Pool
from embedpool import protocol as wire
from embedpool.client.link import open_link, receive
from embedpool.docstrings import docstrings

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import router_of, workers_of  # noqa: E402 - found by the path that is set above

MODEL = "minilm"
TOKENS = 30
FACTOR = 10
LOADS = 2  # processes that overload: the client's share of one must stay far from a whole core
CLIENTS = 4  # in each
BURST_S = 0.005  # requests due within this come at once: one by one they cost the load, and the router, twice the time
ANSWERED_WITHIN_S = 5.0  # after the last budget is over
WORDS = 60  # that end the texts: so many times as many different ones
AHEAD = 16  # open requests of each client that measures capacity: 64 in all, so that workers always find full batches
LIMITS = wire.Limits(8192, 16 << 20, 1_000_000, 64 << 20)


# ── loads, which speak the bare protocol: the pool is measured, not the client ─────────────────────────────────────────


def connect(endpoint: str) -> zmq.Socket[bytes]:
    """A session without shared memory."""
    sock = open_link(endpoint)
    assert isinstance(wire.decode(sock.recv()), wire.Who)
    sock.send(wire.encode(wire.Hello(wire.VERSION, 0, "bench")))
    welcome = wire.decode(sock.recv())
    assert isinstance(welcome, wire.Welcome), welcome
    return sock


def ask(sock: zmq.Socket[bytes], id: int, text: str, timeout_s: float) -> None:
    sock.send(wire.encode(wire.Embed(id, (text,), None, timeout_s * 1e3, sent_s=time.monotonic())))


def outcome_of(answer: wire.Message, in_time: bool) -> str:
    """ "done", "late", a refusal's code, or what an answer must not be."""
    if isinstance(answer, wire.Vectors):
        return "done" if in_time else "late"
    assert isinstance(answer, wire.Refused), answer
    return answer.code if answer.retry_after_ms else f"{answer.code}, without a time to come back"


def overload_load(order: dict[str, Any]) -> None:
    """Sends request i when it is due, whatever became of those before it; saves per request when it was due (`due_s`), how long
    after that its answer was here (`ms`), how much later it was sent (`lag_ms`), and its `outcome`."""
    texts, timeout_s = json.loads(Path(order["texts"]).read_text())[order["seed"]], order["timeout_s"]
    due_s = [math.ceil(due / BURST_S) * BURST_S for due in arrivals(order["per_s"], order["seconds"], order["seed"])]
    socks = [connect(order["endpoint"]) for _ in range(CLIENTS)]
    poller = zmq.Poller()
    for sock in socks:
        poller.register(sock, zmq.POLLIN)
    ms, lag_ms, outcome = np.full(len(due_s), np.nan), np.zeros(len(due_s)), ["no_answer"] * len(due_s)
    began_at, used_s, sent, answered = told_to_begin(), time.process_time(), 0, 0
    give_up_at = began_at + order["seconds"] + timeout_s + ANSWERED_WITHIN_S
    while answered < len(due_s) and time.monotonic() < give_up_at:
        while sent < len(due_s) and began_at + due_s[sent] <= (now := time.monotonic()):
            ask(socks[sent % CLIENTS], sent, texts[sent % len(texts)], timeout_s)
            lag_ms[sent] = (now - began_at - due_s[sent]) * 1e3
            sent += 1
        next_at = began_at + due_s[sent] if sent < len(due_s) else give_up_at
        for sock, _ in poller.poll(max(0, int((next_at - time.monotonic()) * 1e3))):
            while (found := receive(sock)) is not None:
                answer = wire.decode(found[0])
                assert isinstance(answer, wire.Vectors | wire.Refused) and answer.id is not None, answer
                ms[answer.id] = (time.monotonic() - began_at - due_s[answer.id]) * 1e3
                outcome[answer.id] = outcome_of(answer, ms[answer.id] <= timeout_s * 1e3)
                answered += 1
    used_s = time.process_time() - used_s
    np.savez(order["path"], due_s=np.array(due_s), ms=ms, lag_ms=lag_ms, outcome=np.array(outcome, "U48"), cpu_s=used_s)


def closed_load(order: dict[str, Any]) -> None:
    """AHEAD requests of each client always open, until the time is over; saves how many were answered within it."""
    texts = json.loads(Path(order["texts"]).read_text())[LOADS]
    socks = [connect(order["endpoint"]) for _ in range(CLIENTS)]
    poller = zmq.Poller()
    for sock in socks:
        poller.register(sock, zmq.POLLIN)
    end_at, used_s, answered = told_to_begin() + order["seconds"], time.process_time(), 0
    for sent in range(CLIENTS * AHEAD):
        ask(socks[sent % CLIENTS], sent, texts[sent], 30.0)
    while time.monotonic() < end_at:
        for sock, _ in poller.poll(100):
            while (found := receive(sock)) is not None:
                assert isinstance(wire.decode(found[0]), wire.Vectors), "capacity is measured without refusals"
                answered, sent = answered + 1, sent + 1
                ask(sock, sent, texts[sent % len(texts)], 30.0)
    np.savez(order["path"], answered=answered, cpu_s=time.process_time() - used_s)


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


@dataclass(frozen=True)
class Capacity:
    """Requests per second that the pool answers while there are always more, and its workers' processor time in that."""

    per_s: float
    workers_cores: float


def capacity(pool: Pool, seconds: float, texts: str) -> Capacity:
    order = {"role": "closed", "endpoint": pool.endpoint, "texts": texts, "seconds": seconds}
    workers = workers_of(pool.pid)
    with loads(__file__, [order]) as (load,):
        used_s = -cpu_s(workers)
        load.begin(time.monotonic())
        answered = float(load.saw(within_s=seconds + 60)["answered"])
        return Capacity(answered / seconds, (used_s + cpu_s(workers)) / seconds)


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


def texts_of(tokens: int, count: int) -> list[list[str]]:
    """For each load other texts of so many tokens, the special ones included: beginnings of docstrings, and a last word. None
    comes again soon, or it would be computed once for all who wait for it."""
    encoder, found, docs = encoder_of(MODEL), dict[str, None](), docstrings(2000)
    for doc in docs:
        words = doc.text.split(" ")
        for n in range(8, len(words) + 1):
            text = " ".join(words[:n])
            length = len(encoder.tokens([text], "right")[0])
            if length >= tokens - 1:
                if length == tokens - 1:
                    found[text] = None
                break
        if len(found) == count:
            break
    every = dict.fromkeys(word for doc in docs for word in doc.summary.split(" ") if word.isalpha() and word.islower())
    single = [word for word in every if len(encoder.tokens([word], "right")[0]) == 3]
    return [
        [f"{text} {word}" for word in single[load * WORDS : (load + 1) * WORDS] for text in found] for load in range(LOADS + 1)
    ]


def thirds(sizes: list[int]) -> dict[str, float]:
    """The router's size in MB: means of the first and the last third, and their ratio."""
    third = max(len(sizes) // 3, 1)
    first, last = sum(sizes[:third]) / third / 1e6, sum(sizes[-third:]) / third / 1e6
    return {"first_third": round(first, 2), "last_third": round(last, 2), "ratio": round(last / first, 4)}


def results(found: dict[str, Any], capacities: dict[str, list[Capacity]], given: argparse.Namespace) -> dict[str, Any]:
    outcomes = Counter(found["outcome"].tolist())
    refused = found["outcome"] == "overloaded"
    goodput = outcomes["done"] / given.duration
    alone, beside = (float(np.mean([each.per_s for each in capacities[name]])) for name in ("alone", "beside_refusals"))
    of_a_core = float(np.mean([each.per_s / each.workers_cores for each in capacities["alone"]]))
    memory = thirds(found["sizes"])
    refusal_ms = in_ms(found["ms"][refused]) if refused.any() else {}
    answered_by_pool = set(outcomes) <= {"done", "late", "overloaded", "expired"}
    return {
        "model": MODEL,
        "workers": given.workers,
        "tokens_of_a_request": TOKENS,
        "timeout_s": given.timeout_s,
        "duration_s": given.duration,
        "capacity_per_s": {name: [round(each.per_s, 1) for each in every] for name, every in capacities.items()},
        "offered_per_s": round(len(found["ms"]) / given.duration, 1),
        "offered_of_capacity": round(len(found["ms"]) / given.duration / alone, 2),
        "goodput_per_s": round(goodput, 1),
        "goodput_of_capacity": {"alone": round(goodput / alone, 3), "beside_refusals": round(goodput / beside, 3)},
        "goodput_per_worker_core_of_capacity": round(goodput / found["cores"]["workers"] / of_a_core, 3),
        "outcomes": outcomes,
        "done_ms": in_ms(found["ms"][found["outcome"] == "done"]) if outcomes["done"] else {},
        "refusal_ms": refusal_ms,
        "refusal_from_the_sending_ms": in_ms((found["ms"] - found["lag_ms"])[refused]) if refused.any() else {},
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
    parser.add_argument("--duration", type=float, default=40.0, help="seconds of overload")
    parser.add_argument("--capacity-seconds", type=float, default=10.0, help="of each of the four measurements of capacity")
    parser.add_argument("--timeout-s", type=float, default=0.5, help="of each request of the overload")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--raw", help="where to keep every latency (.npz)")
    parser.add_argument("--load", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        LOADS_BY_ROLE[given.load["role"]](given.load)
        return
    capacities: dict[str, list[Capacity]] = {"alone": [], "beside_refusals": []}
    shares: list[dict[str, float]] = []
    with tempfile.NamedTemporaryFile("w", suffix=".json") as texts, Pool(MODEL, workers=given.workers) as pool:
        json.dump(texts_of(TOKENS, 400), texts)
        texts.flush()
        wait_for_workers(pool, given.workers)
        capacity(pool, 2.0, texts.name)  # the cost model and the allocators settle

        def measure_capacity() -> None:
            capacities["alone"].append(capacity(pool, given.capacity_seconds, texts.name))
            per_s = FACTOR * capacities["alone"][0].per_s
            with beside_refusals(texts.name, per_s, given.capacity_seconds, given.timeout_s) as share:
                capacities["beside_refusals"].append(capacity(pool, given.capacity_seconds, texts.name))
            shares.append(share)

        measure_capacity()
        found = overloaded(pool, texts.name, FACTOR * capacities["alone"][0].per_s, given)
        measure_capacity()
        all_computed(pool)
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
