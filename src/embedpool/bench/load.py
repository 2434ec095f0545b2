"""A load: a process that asks. `python -m embedpool.bench.load`, started by loads.py.

It reads its order (one line of JSON), connects, says `ready`, reads the instant at which to begin (of CLOCK_MONOTONIC, which
is one clock for all processes), asks, leaves its samples in a file, and ends when its stdin is closed. What it prints on
stderr is an error.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from embedpool.bench.drive import Ask, Sample, Told, closed_loop, open_loop
from embedpool.bench.workload import Arrivals, schedule, text_at
from embedpool.client import AsyncClient
from embedpool.errors import EmbedpoolError
from embedpool.lifeline import die_with_parent
from embedpool.protocol import Priority

CONNECT_S = 30.0
SEGMENT_BYTES = 16 << 20


class Queries(Struct, frozen=True, tag=True):
    """Every `step`-th request of the schedule from `first` on, over so many connections in turns."""

    endpoint: str
    texts: str
    into: str
    timeout_s: float
    connections: int
    rate: float
    seconds: float
    arrivals: Arrivals
    seed: int
    first: int
    step: int


class BulkWork(Struct, frozen=True, tag=True):
    """One request of so many rows after the other."""

    endpoint: str
    texts: str
    into: str
    timeout_s: float
    rows: int
    seconds: float


Order = Queries | BulkWork


def asking(clients: Sequence[AsyncClient], texts: Sequence[str], rows: int, priority: Priority, timeout_s: float) -> Ask:
    """Requests of `rows` texts that nobody else asks for, with the prompt that a pool's user would take, over the clients in
    turns."""
    usual = "query" if priority == "interactive" else "document"

    async def ask(i: int) -> Told:
        client = clients[i % len(clients)]
        prompt = usual if usual in (await client.model(timeout_s=timeout_s)).prompts else None
        asked = [text_at(texts, i * rows + row) for row in range(rows)]
        answer = await client.answer(asked, prompt_name=prompt, priority=priority, timeout_s=timeout_s)
        return Told(len(answer.vectors), answer.tokens, answer.queue_ms, answer.tokenize_ms, answer.run_ms)

    return ask


async def run(order: Order) -> list[Sample]:
    texts = msgspec.json.decode(Path(order.texts).read_bytes(), type=list[str])
    count = order.connections if isinstance(order, Queries) else 1
    clients = [AsyncClient(order.endpoint, segment_bytes=SEGMENT_BYTES) for _ in range(count)]
    try:
        for client in clients:
            await client.model(timeout_s=CONNECT_S)
        if isinstance(order, Queries):
            due_s = schedule(order.rate, order.seconds, order.arrivals, order.seed)[order.first :: order.step]
            ask = asking(clients, texts, 1, "interactive", order.timeout_s)
            return await open_loop(due_s, ask, told_to_begin())
        ask = asking(clients, texts, order.rows, "bulk", order.timeout_s)
        return await closed_loop(ask, told_to_begin(), order.seconds)
    finally:
        for client in clients:
            await client.close()


def told_to_begin() -> float:
    """Says that this load is ready; the instant at which it is to begin."""
    gc.collect()
    gc.freeze()  # a collection that walks all that was imported would count as latency
    print("ready", flush=True)
    return float(sys.stdin.readline())


def main() -> int:
    die_with_parent()
    order = msgspec.json.decode(sys.stdin.readline(), type=Order)
    try:
        # asyncio's usual selector, epoll, counts in whole milliseconds: requests would be asked up to one late.
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
            samples = runner.run(run(order))
    except EmbedpoolError as error:
        print(error.message, file=sys.stderr)
        return 1
    Path(order.into).write_bytes(msgspec.msgpack.encode(samples))
    sys.stdin.read()  # stays until it is told to go: its processor time is read from outside
    return 0


if __name__ == "__main__":
    sys.exit(main())
