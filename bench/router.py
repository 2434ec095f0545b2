"""What the router itself can do, and what it costs: single-text requests from 16 sessions to echo workers.

rate: requests answered by the router's own count, between two instants between which AHEAD requests of each session are always
open;
router's time: processor time of the router process, all its threads, between these instants, divided by the requests;
memory: the router's resident size when it has answered EARLY requests, and when it has answered all.

The sessions are driven by the bare protocol, in processes of four each: the router is measured, not the client. Then the same
with AsyncClient, whose own time per request is larger than the router's: on few cores it is what bounds the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from common import all_computed, busy_s, cpu_s, loads, median, rss_bytes, told_to_begin, wait_for_workers, write
from embedpool import AsyncClient, Pool
from embedpool import protocol as wire
from embedpool.client.link import open_link
from embedpool.shm.segment import ReadMap

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import router_of, workers_of  # noqa: E402 - found by the path that is set above

TEXT = "which planet is known as the red planet?"
PROCESSES, SESSIONS = 4, 4  # sessions in each process
AHEAD = 64  # open requests per session
EARLY = 100_000  # requests after which the router has all it needs, if it keeps nothing of a request
SEGMENT_BYTES = 1 << 20
LONGEST_S = 300.0  # of one run: it is given up, as an error


# ── loads: until they are told to end ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Session:
    """A socket with a session, AHEAD requests with a room each, and the segment: unmapped, the session would be given up."""

    sock: zmq.Socket[bytes]
    frames: list[bytes]
    held: ReadMap


def open_session(endpoint: str, ahead: int) -> Session:
    sock = open_link(endpoint)
    assert isinstance(wire.decode(sock.recv()), wire.Who)
    sock.send(wire.encode(wire.Hello(wire.VERSION, SEGMENT_BYTES, "bench")))
    welcome = wire.decode(sock.recv())
    assert isinstance(welcome, wire.Welcome), welcome
    row_bytes = welcome.models[0].dim * 4
    # Texts that are open at the same time differ, or they would be computed together.
    texts = [f"{TEXT} {os.getpid()} {id(sock)} {i}" for i in range(ahead)]
    frames = [wire.encode(wire.Embed(i, (text,), i * row_bytes)) for i, text in enumerate(texts)]
    return Session(sock, frames, ReadMap(welcome.segment, welcome.segment_bytes))


def bare_load(order: dict[str, Any]) -> None:
    """An answer's id is asked for again at once: its room is free, and its id is no longer open."""
    opened = [open_session(order["endpoint"], order["ahead"]) for _ in range(order["sessions"])]
    sessions = {session.sock: session for session in opened}
    told_to_begin()
    poller = zmq.Poller()
    for sock, session in sessions.items():
        poller.register(sock, zmq.POLLIN)
        for frame in session.frames:
            sock.send(frame)
    while True:
        for sock, _ in poller.poll():
            frames = sessions[sock].frames
            while True:
                try:
                    answer = wire.decode(sock.recv(zmq.NOBLOCK))
                except zmq.Again:
                    break
                if type(answer) is not wire.Vectors:
                    raise RuntimeError(f"not an answer: {answer}")
                sock.send(frames[answer.id])


def client_load(order: dict[str, Any]) -> None:
    async def ask(pool: AsyncClient, number: int) -> None:
        text = f"{TEXT} {os.getpid()} {number}"
        while True:
            await pool.embed([text])

    async def all_of_them() -> None:
        pools = [AsyncClient(order["endpoint"], segment_bytes=SEGMENT_BYTES) for _ in range(SESSIONS)]
        for pool in pools:
            await pool.model(timeout_s=30)
        told_to_begin()
        await asyncio.gather(*[ask(pool, AHEAD * i + n) for i, pool in enumerate(pools) for n in range(AHEAD)])

    asyncio.run(all_of_them())


# ── one run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Usage:
    """Counts that only grow, at one instant; and the router's size."""

    at: float
    answered: int
    jobs: int
    router_s: float
    workers_s: float
    loads_s: float
    busy_s: float
    rss: int


def usage(pool: Pool, pids: list[int]) -> Usage:
    counters = json.loads(pool.status(timeout_s=30))["counters"]
    if counters["refused"]:
        raise RuntimeError(f"refused: {counters['refused']}")
    router = router_of(pool.pid)
    used = (cpu_s([router]), cpu_s(workers_of(pool.pid)), cpu_s(pids), busy_s())
    return Usage(time.monotonic(), counters["answered"], counters["jobs"], *used, rss_bytes(router))


@dataclass(frozen=True)
class Crowd:
    """Who asks: so many processes, with so many sessions each, with so many requests open each."""

    processes: int = PROCESSES
    sessions: int = SESSIONS
    ahead: int = AHEAD


def run(role: str, requests: int, workers: int, crowd: Crowd = Crowd(), **settings: Any) -> dict[str, float]:
    """`settings` are the pool's."""
    with Pool("echo", workers=workers, **settings) as pool:
        wait_for_workers(pool, workers)
        order = {"role": role, "endpoint": pool.endpoint, "sessions": crowd.sessions, "ahead": crowd.ahead}
        with loads(__file__, [order] * crowd.processes) as started:
            pids = [load.pid for load in started]
            for load in started:
                load.begin(0.0)
            time.sleep(1.0)
            first = early = last = usage(pool, pids)
            while last.answered - first.answered < requests:
                time.sleep(0.2)
                if early.answered < EARLY:
                    early = last
                last = usage(pool, pids)
                if last.at - first.at > LONGEST_S or any(load.process.poll() is not None for load in started):
                    raise RuntimeError(f"only {last.answered} requests were answered")
            all_computed(pool)
    return per_request(first, early, last)


def per_request(first: Usage, early: Usage, last: Usage) -> dict[str, float]:
    n, seconds = last.answered - first.answered, last.at - first.at
    mine = (last.router_s - first.router_s) + (last.workers_s - first.workers_s) + (last.loads_s - first.loads_s)
    return {
        "requests": n,
        "requests_per_s": round(n / seconds),
        "requests_per_job": round(n / (last.jobs - first.jobs), 2),
        "router_us": round((last.router_s - first.router_s) / n * 1e6, 2),
        "workers_us": round((last.workers_s - first.workers_s) / n * 1e6, 2),
        "clients_us": round((last.loads_s - first.loads_s) / n * 1e6, 2),
        "router_mb_early": round(early.rss / 1e6, 2),
        "router_mb_at_end": round(last.rss / 1e6, 2),
        "cores_used_by_others": round((last.busy_s - first.busy_s - mine) / seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=600_000)
    parser.add_argument("--client-requests", type=int, default=200_000, help="of the runs with AsyncClient")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--load", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        {"bare": bare_load, "client": client_load}[given.load["role"]](given.load)
        return
    runs: dict[str, list[dict[str, float]]] = {"bare": [], "client": []}
    for _ in range(given.repeats):
        runs["bare"].append(run("bare", given.requests, given.workers))
        runs["client"].append(run("client", given.client_requests, given.workers))
    middle = {role: {name: median([one[name] for one in found]) for name in found[0]} for role, found in runs.items()}
    bare, growth = middle["bare"], max(one["router_mb_at_end"] / one["router_mb_early"] for one in runs["bare"])
    write(
        "router",
        " ".join((__doc__ or "").split()),
        {
            "sessions": PROCESSES * SESSIONS,
            "processes": PROCESSES,
            "requests_ahead_per_session": AHEAD,
            "workers": given.workers,
            **middle,
            "of_each_repeat": runs,
            "goals": {
                ">= 20,000 requests/s": bare["requests_per_s"] >= 20_000,
                "<= 40 us of the router per request": bare["router_us"] <= 40,
                "memory flat (10 %) over all requests": growth <= 1.1,
            },
        },
    )


if __name__ == "__main__":
    main()
