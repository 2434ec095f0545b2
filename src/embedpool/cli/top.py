"""`embedpool top`: a running pool, live. See docs/top.md."""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import time

import msgspec
from rich.console import Console
from rich.live import Live

from embedpool.errors import ConfigError
from embedpool.top import lines, terminal
from embedpool.top.panels import Look
from embedpool.top.screen import screen, waiting
from embedpool.top.watching import Seen, watch

FASTEST_S, SLOWEST_S = 0.2, 60.0
TALL = 1000  # lines: a page that is printed once ends where it ends


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", help="the pool (default: EMBEDPOOL_ENDPOINT, or the one of this machine)")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between two looks, 0.2 to 60 (default 1)"
    )
    parser.add_argument("--once", action="store_true", help="print one screen, of one interval, and end")
    parser.add_argument("--json", action="store_true", help="one JSON document per interval instead of the screen")


def run(arguments: argparse.Namespace) -> int:
    if not FASTEST_S <= arguments.interval <= SLOWEST_S:
        raise ConfigError(f"--interval {arguments.interval:g}: from {FASTEST_S:g} to {SLOWEST_S:g} seconds")
    console = Console(highlight=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what the terminal's encoding lacks must not end the watching
    if arguments.once:
        return _once(arguments, console)
    if arguments.json or not console.is_terminal or console.is_dumb_terminal:
        asyncio.run(watch(arguments.endpoint, arguments.interval, _json if arguments.json else _line))
    else:
        _live(arguments, console)
    return 0


def _live(arguments: argparse.Namespace, console: Console) -> None:
    """Until q. The cursor, the former screen and the keyboard are there again afterwards, whatever happened."""
    last = Seen()
    look = Look(ascii=console.options.ascii_only)
    with terminal.keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:

        def draw() -> None:
            width, height = console.size
            away = last.away and f"{last.away} (asked again every {arguments.interval:g} s)"
            shown = (
                waiting(away, width, height, look)
                if last.snapshot is None
                else screen(last.snapshot, last.history, width, height, away=away, look=look)
            )
            live.update(shown, refresh=True)

        def show(seen: Seen) -> bool:
            nonlocal last
            last = seen
            draw()
            return True

        draw()
        asyncio.run(watch(arguments.endpoint, arguments.interval, show, keys, draw))


def _once(arguments: argparse.Namespace, console: Console) -> int:
    """Two looks, one interval apart; 1 if the pool does not answer or serve."""
    found: list[Seen] = []

    def second(seen: Seen) -> bool:
        found.append(seen)
        return len(found) < 2 and not seen.away

    asyncio.run(watch(arguments.endpoint, arguments.interval, second))
    if not found:
        return 1  # interrupted
    seen = found[-1]
    if seen.snapshot is None or seen.away:
        print(f"embedpool: {seen.away}", file=sys.stderr)
        return 1
    if arguments.json:
        _json(seen)
    else:
        console.print(
            screen(seen.snapshot, seen.history, console.width, TALL, look=Look(console.options.ascii_only, live=False))
        )
    return 0 if seen.snapshot.state in ("serving", "draining") else 1


def _line(seen: Seen) -> bool:
    clock = time.strftime("%H:%M:%S")
    print(lines.away(seen.away, clock) if seen.away or seen.snapshot is None else lines.line(seen.snapshot, clock), flush=True)
    return True


def _json(seen: Seen) -> bool:
    """The snapshot, or {"state": "away", "reason": ...}."""
    found = {"state": "away", "reason": seen.away} if seen.away or seen.snapshot is None else seen.snapshot
    print(msgspec.json.encode(found).decode(), flush=True)
    return True
