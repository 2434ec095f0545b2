"""What the pool itself costs, measured with the echo model, which computes almost nothing.

round trip: from calling Client.embed with one text to having the array, one call at a time;
pipelined: `embed` messages of one text each, AHEAD of them open, from the first sent to the last answered.
"""

from __future__ import annotations

import argparse
import time

import zmq

from common import median, percentile, write
from embedpool import Pool
from embedpool import protocol as wire
from embedpool.client.link import open_link
from embedpool.shm.segment import ReadMap

TEXT = "which planet is known as the red planet?"
AHEAD = 256


def round_trips(pool: Pool, calls: int) -> dict[str, float]:
    for _ in range(200):
        pool.embed([TEXT])
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        pool.embed([TEXT])
        found.append((time.perf_counter() - began) * 1e6)
    return {f"p{p}_us": round(percentile(found, p), 1) for p in (50, 95, 99)}


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
            "workers": 1,
            "requests_ahead": AHEAD,
        },
    )


if __name__ == "__main__":
    main()
