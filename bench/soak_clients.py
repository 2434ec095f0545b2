"""The clients of a soak, each visit a process of its own: those that leave, stall, die, cancel, are refused, or talk nonsense.

One process (`crowd`) forks a guardian for every visit when it is due, and the guardian the client; a client that is to come to
harm says when it has an answer outstanding or memory in hand, and its guardian sees to the rest. Nothing of the library that
has threads or sockets exists before the forks. The other load here makes bulk bursts over one session that stays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import soak_plan
from chaos import known
from common import arrivals, outcome_of, sleep_until, told_to_begin
from embedpool import AsyncClient, Client
from embedpool import protocol as wire
from embedpool.client.link import open_link
from embedpool.errors import EmbedpoolError
from embedpool.lifeline import die_with_parent
from soak_plan import Visit

SEGMENT_BYTES = 1 << 20
LARGE_ROWS = 48  # of a request that is still open when its client is hit: a third of a second of two workers
HIT_S = (0.005, 0.15)  # after the client has said that it asks
BURST_ROWS = 256
CLIENT_S = 60.0  # a client that takes longer than this is one that hangs
TOO_LONG = "x" * 2_000_000  # characters: more than max_text_chars
FORK = multiprocessing.get_context("fork")


class Wrong(Exception):
    """An answer that is not what it has to be."""


# ── one visit ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Visitor:
    """What one client does, in a process of its own. `hurt` tells the guardian that the moment has come."""

    def __init__(
        self, order: dict[str, Any], visit: Visit, texts: list[str], wanted: np.ndarray, hurt: Callable[[], None]
    ) -> None:
        self.endpoint: str = order["endpoint"]
        self.visit, self.texts, self.wanted, self.hurt = visit, texts, wanted, hurt
        self.rng = random.Random(visit.seed)

    def run(self) -> None:
        match self.visit.kind:
            case "cancels":
                asyncio.run(self._cancel())
            case "garbage":
                self._talk_nonsense()
            case kind:
                with Client(self.endpoint, segment_bytes=0 if kind == "inline" else SEGMENT_BYTES) as pool:
                    self._ask(pool, self.rng.randint(1, 4))
                    if kind in ("dies at work", "stalls", "stalls and dies"):
                        self.hurt()
                        self._ask(pool, LARGE_ROWS)
                    elif kind == "dies":
                        kept = self._ask(pool, 4)
                        self.hurt()
                        time.sleep(CLIENT_S)
                        raise Wrong(f"not killed, with {len(kept)} rows in hand")
                    elif kind == "refused":
                        self._be_refused(pool)
                    self._ask(pool, self.rng.randint(1, 4))

    def _rows(self, count: int) -> list[int]:
        start = self.rng.randrange(len(self.texts) - count)
        return list(range(start, start + count))

    def _check(self, found: np.ndarray, rows: list[int]) -> np.ndarray:
        if found.tobytes() != self.wanted[rows].tobytes():
            raise Wrong(f"rows {rows[0]} to {rows[-1]} differ from the reference")
        return found

    def _ask(self, pool: Client, count: int) -> np.ndarray:
        rows = self._rows(count)
        return self._check(pool.embed([self.texts[row] for row in rows], priority="bulk" if count > 8 else "interactive"), rows)

    def _be_refused(self, pool: Client) -> None:
        """Requests that can never succeed, and one that has no time: each has to be refused as what it is."""
        for code, ask in (
            ("too_large", lambda: pool.embed([TOO_LONG])),
            ("unknown_model", lambda: pool.embed(["a"], model="another")),
            ("bad_dimension", lambda: pool.embed(["a"], dim=100_000)),
            ("too_long", lambda: pool.embed(["word " * 2000], truncate=False)),
        ):
            try:
                ask()
            except EmbedpoolError as error:
                if error.code != code:
                    raise
            else:
                raise Wrong(f"answered, not refused as {code}")
        with suppress(EmbedpoolError):  # answered, if the pool is that fast
            self._ask_in(pool, 0.002)

    def _ask_in(self, pool: Client, timeout_s: float) -> None:
        rows = self._rows(LARGE_ROWS)
        self._check(pool.embed([self.texts[row] for row in rows], timeout_s=timeout_s), rows)

    async def _cancel(self) -> None:
        async with AsyncClient(self.endpoint, segment_bytes=SEGMENT_BYTES) as pool:
            for _ in range(3):
                rows = self._rows(LARGE_ROWS)
                asking = asyncio.ensure_future(pool.embed([self.texts[row] for row in rows]))
                await asyncio.sleep(self.rng.uniform(*HIT_S))
                asking.cancel()
                with suppress(asyncio.CancelledError):
                    self._check(await asking, rows)
            rows = self._rows(4)
            self._check(await pool.embed([self.texts[row] for row in rows]), rows)

    def _talk_nonsense(self) -> None:
        """Bytes that are no message, a message of the wrong direction, and then going without a word."""
        with open_link(self.endpoint) as sock:
            for frame in (self.rng.randbytes(200), wire.encode(wire.Hello(wire.VERSION, SEGMENT_BYTES, "nonsense")), b"\xc1"):
                sock.send(frame)
            codes, welcomed = set[str](), False
            while sock.poll(2000) and not (welcomed and len(codes) > 0):
                match wire.decode(sock.recv_multipart()[0]):
                    case wire.Refused(code=code):
                        codes.add(code)
                    case wire.Welcome():
                        welcomed = True
            if codes != {"bad_message"} or not welcomed:
                raise Wrong(f"nonsense was answered by {sorted(codes)}")


def client(order: dict[str, Any], visit: Visit, texts: list[str], wanted: np.ndarray, tell: Connection) -> None:
    """The client's process; its last word is "done" or what went wrong."""
    die_with_parent()
    try:
        Visitor(order, visit, texts, wanted, lambda: tell.send("now")).run()
        tell.send("done")
    except EmbedpoolError as error:
        print(f"{visit} failed: {error!r}", file=sys.stderr)
        tell.send(f"failed: {outcome_of(error)}")
    except Wrong as error:
        print(f"{visit}: {error}", file=sys.stderr)
        tell.send("wrong")


def guard(order: dict[str, Any], visit: Visit, texts: list[str], wanted: np.ndarray) -> None:
    """The guardian's process: starts the client, does to it what it has come for, and writes its outcome down."""
    die_with_parent()
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=client, args=(order, visit, texts, wanted, theirs))
    process.start()
    theirs.close()
    outcome = "hangs"
    end_at, rng = time.monotonic() + CLIENT_S, random.Random(visit.seed)
    while ours.poll(max(0.0, end_at - time.monotonic())):
        try:
            outcome = ours.recv()
        except EOFError:
            outcome = "ended without a word" if outcome in ("hangs", "now") else outcome
            break
        if outcome == "now":
            time.sleep(rng.uniform(*HIT_S) if visit.kind != "dies" else 0.1)
            if fate(process.pid, visit):
                outcome = "killed"
                break
    process.kill()
    process.join()
    with Path(order["path"] + ".outcomes").open("a") as file:  # a line at a time, to its end: none is mixed with another's
        file.write(f"{visit.kind}: {outcome}\n")


def fate(pid: int | None, visit: Visit) -> bool:
    """Stops the client, or ends it; whether it is dead."""
    assert pid is not None
    if visit.kind.startswith("stalls"):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(visit.stall_s)
    if "dies" in visit.kind:
        os.kill(pid, signal.SIGKILL)
        return True
    os.kill(pid, signal.SIGCONT)
    return False


# ── loads ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def crowd_load(order: dict[str, Any]) -> None:
    """All visits, each when it is due; saves how many of each kind had which outcome."""
    texts, wanted = known(order, "documents")
    plan = soak_plan.visits(arrivals(order["per_s"], order["seconds"], order["seed"]), order["seed"])
    outcomes = Path(order["path"] + ".outcomes")
    outcomes.touch()
    began_at = told_to_begin()
    guardians = []
    for visit in plan:
        sleep_until(began_at + visit.due_s)
        guardians = [each for each in guardians if each.is_alive()]  # reaps those that have ended
        guardian = FORK.Process(target=guard, args=(order, visit, texts, wanted))
        guardian.start()
        guardians.append(guardian)
    for guardian in guardians:
        guardian.join(CLIENT_S + 10)
    counted = Counter(outcomes.read_text().splitlines())
    outcomes.unlink()
    np.savez(order["path"], planned=len(plan), outcomes=json.dumps(counted))


def bulk_load(order: dict[str, Any]) -> None:
    """A burst of BURST_ROWS documents whenever one is due; saves each one's outcome and its wrong rows."""
    texts, wanted = known(order, "documents")
    outcome, wrong, ms, start = list[str](), list[int](), list[float](), 0
    with Client(order["endpoint"]) as pool:
        pool.model(timeout_s=30)
        began_at = told_to_begin()
        for due_s in soak_plan.bursts(order["seconds"]):
            sleep_until(began_at + due_s)
            rows = [(start + i) % len(texts) for i in range(BURST_ROWS)]
            asked_at, differ = time.monotonic(), 0
            try:
                found = pool.embed_documents([texts[row] for row in rows])
                differ = int((found.view(np.uint32) != wanted[rows].view(np.uint32)).any(axis=1).sum())
                outcome.append("done")
            except EmbedpoolError as error:
                print(f"burst {len(outcome)} failed: {error!r}", file=sys.stderr)
                outcome.append(outcome_of(error))
            wrong.append(differ)
            ms.append((time.monotonic() - asked_at) * 1e3)
            start += BURST_ROWS
        sleep_until(began_at + order["seconds"])
    np.savez(order["path"], outcome=np.array(outcome), wrong=np.array(wrong), ms=np.array(ms))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", type=json.loads, required=True)
    given = parser.parse_args()
    (bulk_load if given.load["role"] == "bulk" else crowd_load)(given.load)
