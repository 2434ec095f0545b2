"""What the pool itself costs, measured with the echo model, which computes almost nothing, and beside MiniLM.

round trip: from calling Client.embed with one text to having the array, one call at a time;
query: from calling Client.answer with one text of QUERY_TOKENS tokens to having the array, one call at a time, never the same
text; less what the answer says that tokenising and running took (tokenize_ms, run_ms). What is left is the client, the router,
the worker's part beside the model, and being woken after milliseconds of sleep;
pipelined: `embed` messages of one text each, AHEAD of them open, from the first sent to the last answered.
"""

from __future__ import annotations

import argparse
import time
from itertools import count
from typing import Any

import zmq

from common import median, percentile, write
from embedpool import Pool
from embedpool import protocol as wire
from embedpool.client.link import open_link
from embedpool.shm.segment import ReadMap
from growth import text

TEXT = "which planet is known as the red planet?"
AHEAD = 256
QUERY_TOKENS = 18
MODELS = {"minilm": "MiniLM", "echo": "echo"}  # the argument of Pool, and what the result calls it
UNLIKE = count()  # tells the texts apart


def round_trips(pool: Pool, calls: int) -> dict[str, float]:
    for _ in range(200):
        pool.embed([TEXT])
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        pool.embed([TEXT])
        found.append((time.perf_counter() - began) * 1e6)
    return {f"p{p}_us": round(percentile(found, p), 1) for p in (50, 95, 99)}


def queries(pool: Pool, calls: int) -> dict[str, float]:
    """Microseconds over tokenising and running, and in all."""
    over, in_all = [], []
    for n in range(-100, calls):
        query = text(QUERY_TOKENS - 2, next(UNLIKE))
        began = time.perf_counter()
        answer = pool.answer([query])
        took_us = (time.perf_counter() - began) * 1e6
        if n >= 0:  # before, it warms up
            in_all.append(took_us)
            over.append(took_us - (answer.tokenize_ms + answer.run_ms) * 1e3)
    return {f"p{p}_us": round(percentile(over, p), 1) for p in (50, 95, 99)} | {
        "in_all_p50_us": round(median(in_all), 1),
        "tokens": answer.tokens,
    }


def query_overhead(repeats: int, calls: int) -> dict[str, Any]:
    """Of each model: medians over the repeats, and the medians of each."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in MODELS.values()}
    for _ in range(repeats):
        for model, name in MODELS.items():
            with Pool(model, workers=1) as pool:
                found[name].append(queries(pool, calls))
    if any(one["tokens"] != QUERY_TOKENS for one in found["MiniLM"]):
        raise RuntimeError(f"a query was to have {QUERY_TOKENS} tokens: {found['MiniLM']}")
    return {
        name: {key: median([one[key] for one in each]) for key in each[0]}
        | {"p50_us_of_each_repeat": [one["p50_us"] for one in each]}
        for name, each in found.items()
    }


def pipelined(endpoint: str, requests: int) -> float:
    """Requests per second through one connection, driven by the bare protocol: the router is measured, not the client."""
    sock = open_link(endpoint)
    router = wire.decode(sock.recv())
    assert isinstance(router, wire.Who)
    sock.send(wire.encode(wire.Hello(wire.VERSION, 16 << 20, "bench")))
    welcome = wire.decode(sock.recv())
    assert isinstance(welcome, wire.Welcome), welcome
    held = ReadMap(welcome.segment, welcome.segment_bytes)
    row_bytes = welcome.models[0].dim * 4
    frames = [
        wire.encode(wire.Embed(i, (f"{TEXT} {i % AHEAD}",), (i % AHEAD) * row_bytes)) for i in range(AHEAD, AHEAD + requests)
    ]
    began = time.perf_counter()
    sent = answered = 0
    while answered < requests:
        while sent < requests and sent - answered < AHEAD:
            sock.send(frames[sent])
            sent += 1
        flags = 0
        while answered < requests:
            try:
                frame = sock.recv(flags)
            except zmq.Again:
                break
            if b"vectors" not in frame[:24]:
                raise RuntimeError(f"not an answer: {wire.decode(frame)}")
            answered += 1
            flags = zmq.NOBLOCK
    seconds = time.perf_counter() - began
    sock.send(wire.encode(wire.Bye()))
    sock.close()
    held.close()
    return requests / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    trips, rates = [], []
    for _ in range(given.repeats):
        with Pool("echo", workers=1) as pool:
            trips.append(round_trips(pool, given.calls))
            rates.append(pipelined(pool.endpoint, given.requests))
    write(
        "overhead",
        " ".join((__doc__ or "").split()),
        {
            "round_trip_us": {key: median([trip[key] for trip in trips]) for key in trips[0]},
            "round_trip_p50_us_of_each_repeat": [trip["p50_us"] for trip in trips],
            "pipelined_requests_per_s": round(median(rates)),
            "pipelined_requests_per_s_of_each_repeat": [round(rate) for rate in rates],
            "query_over_tokenize_and_run": query_overhead(given.repeats, given.queries),
            "workers": 1,
            "requests_ahead": AHEAD,
        },
    )


if __name__ == "__main__":
    main()
