"""Asks when it is time to, and notes the instants. Knows no socket: `Ask` is what a request is, the loop's clock what time is.

Runs in a load's process, on an event loop whose clock is time.monotonic, and in tests on one whose clock jumps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec import Struct

from embedpool.errors import EmbedpoolError

ANSWERED = "answered"
NO_ANSWER = "no_answer"  # the client stopped waiting; `expired` is the pool's own word
PAUSE_S = 0.1  # of a bulk client after a refusal


class Told(Struct, frozen=True, gc=False):
    """What an answer says of its request: texts and tokens, and the milliseconds that it spent in the pool's stages."""

    rows: int
    tokens: int
    queue_ms: float
    tokenize_ms: float
    run_ms: float


class Sample(Struct, frozen=True, gc=False, array_like=True):
    """One request: when it was due, sent, and answered or refused, in seconds from the load's beginning; what became of it
    (`answered`, or an error's code); and what its answer said, zeros without one."""

    due_s: float
    sent_s: float
    done_s: float
    outcome: str
    rows: int = 0
    tokens: int = 0
    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    run_ms: float = 0.0


Ask = Callable[[int], Coroutine[Any, Any, Told]]


async def open_loop(due_s: Sequence[float], ask: Ask, begin_at: float) -> list[Sample]:
    """Asks request i at `begin_at + due_s[i]`, however many before it are still open; returns when all have ended."""
    loop, tasks = asyncio.get_running_loop(), list[asyncio.Task[Sample]]()
    for i, due in enumerate(due_s):
        if (wait_s := begin_at + due - loop.time()) > 0:
            await asyncio.sleep(wait_s)
        elif not i % 8:
            await asyncio.sleep(0)  # behind time: answers are to be read nevertheless
        tasks.append(loop.create_task(_one(i, due, ask, begin_at)))
    return [await task for task in tasks]


async def closed_loop(ask: Ask, begin_at: float, until_s: float) -> list[Sample]:
    """Asks one request after the other, the next when the last has ended, until `until_s` after `begin_at`; the one that is
    open then is waited for."""
    loop, found = asyncio.get_running_loop(), list[Sample]()
    await asyncio.sleep(max(0.0, begin_at - loop.time()))
    while (due := loop.time() - begin_at) < until_s:
        found.append(await _one(len(found), due, ask, begin_at))
        if found[-1].outcome != ANSWERED:
            await asyncio.sleep(PAUSE_S)
    return found


async def _one(i: int, due_s: float, ask: Ask, begin_at: float) -> Sample:
    loop = asyncio.get_running_loop()
    sent_s = loop.time() - begin_at
    try:
        told = await ask(i)
    except EmbedpoolError as error:
        return Sample(due_s, sent_s, loop.time() - begin_at, outcome_of(error))
    done_s = loop.time() - begin_at
    return Sample(due_s, sent_s, done_s, ANSWERED, told.rows, told.tokens, told.queue_ms, told.tokenize_ms, told.run_ms)


def outcome_of(error: EmbedpoolError) -> str:
    """The error's code, but NO_ANSWER where it was the client that stopped waiting."""
    unanswered = error.code == "expired" and error.message.startswith("no answer in time")
    return NO_ANSWER if unanswered else error.code
