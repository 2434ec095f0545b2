"""Asks a pool for its status, again and again, and shows what it says until somebody has seen enough.

Rules
1. The pool is asked every interval and given ASK_S to answer. One that does not is shown as away, with why, and asked again:
   by a client that connects anew by itself, so a pool that comes back is found again.
2. Keys and a change of the window's size are heard at once, whatever the asking does.
3. `show` decides how it looks; nothing here knows of a terminal but the descriptor of the keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from embedpool.client import AsyncClient
from embedpool.errors import ConfigError, EmbedpoolError
from embedpool.top import document, processes
from embedpool.top.history import History
from embedpool.top.view import Reading, Snapshot

ASK_S = 2.0
QUIT = b"qQ\x03\x04"  # and Ctrl-C, Ctrl-D, where the terminal hands them over as keys


@dataclass(slots=True)
class Seen:
    """What is known of the pool: the last snapshot, None before the first, and why there is no newer one, "" if it is new."""

    endpoint: str = ""
    snapshot: Snapshot | None = None
    away: str = ""
    history: History = field(default_factory=History)


async def ask(pool: AsyncClient, seen: Seen) -> None:
    """One question; `seen` is up to date afterwards. Raises ConfigError for an endpoint that can never be one."""
    try:
        found = document.read(await pool.status(timeout_s=ASK_S))
    except ConfigError:
        raise
    except (EmbedpoolError, OSError, ValueError) as error:
        seen.away = str(error) or type(error).__name__
        seen.history.missed()
        return
    reading = Reading(time.monotonic(), found, processes.memory(worker.pid for worker in found.workers))
    seen.snapshot, seen.away = seen.history.observe(reading), ""
    if not seen.snapshot.endpoint:
        seen.snapshot = replace(seen.snapshot, endpoint=seen.endpoint)


async def watch(
    endpoint: str | None,
    interval_s: float,
    show: Callable[[Seen], bool],
    keys: int | None = None,
    redraw: Callable[[], None] | None = None,
) -> None:
    """Calls `show` after every question until it says False, or a key or signal says that it is enough. `redraw` is called
    when the window's size has changed."""
    quit_ = asyncio.Event()
    loop = asyncio.get_running_loop()
    pool = AsyncClient(endpoint, segment_bytes=0, connect_timeout_s=ASK_S)
    if keys is not None:
        loop.add_reader(keys, _heard, keys, quit_)
    if redraw is not None:
        loop.add_signal_handler(signal.SIGWINCH, redraw)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, quit_.set)
    asking = asyncio.create_task(_ask_again(pool, interval_s, show))
    leaving = asyncio.create_task(quit_.wait())
    try:
        done, _ = await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
        if asking in done:
            asking.result()
    finally:
        for task in (asking, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(asking, leaving, return_exceptions=True)
        if keys is not None:
            loop.remove_reader(keys)
        await pool.close()


async def _ask_again(pool: AsyncClient, interval_s: float, show: Callable[[Seen], bool]) -> None:
    """At fixed instants: an answer that took its time does not move those after it."""
    seen = Seen(pool.endpoint)
    next_at = time.monotonic()
    while True:
        await ask(pool, seen)
        if not show(seen):
            return
        next_at = max(next_at + interval_s, time.monotonic())
        await asyncio.sleep(next_at - time.monotonic())


def _heard(fd: int, quit_: asyncio.Event) -> None:
    try:
        pressed = os.read(fd, 64)
    except OSError:
        pressed = b""
    if not pressed or any(key in QUIT for key in pressed):  # nothing: the terminal is gone
        quit_.set()
