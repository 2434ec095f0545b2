"""Draws docs/top.svg: `embedpool top` watching a pool of this machine for a while, with queries at a rate that rises and
falls beside bulk work that comes and goes. Not a benchmark: what is to be seen is what it looks like.

    python bench/top_picture.py [--model minilm] [--seconds 75] [--output docs/top.svg]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import math
import random
import re
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from embedpool import AsyncClient, EmbedpoolError, Pool
from embedpool.docstrings import docstrings
from embedpool.top.screen import screen
from embedpool.top.watching import Seen, watch

COLUMNS, LINES = 100, 31
FONTS = "Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace"
ROUND_S = 25.0  # queries rise and fall once
PALETTE = [
    (40, 44, 52),
    (224, 108, 117),
    (126, 200, 128),
    (229, 192, 123),
    (97, 175, 239),
    (190, 132, 220),
    (86, 190, 200),
    (200, 205, 214),
]
BRIGHT = [(84, 91, 104), *PALETTE[1:7], (255, 255, 255)]
THEME = TerminalTheme((24, 27, 33), (206, 211, 219), PALETTE, BRIGHT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--seconds", type=float, default=75.0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "top.svg")
    arguments = parser.parse_args()
    with Pool(arguments.model, workers=2) as pool:
        seen = asyncio.run(_watched(pool.endpoint, arguments.seconds))
    assert seen.snapshot is not None, seen.away
    arguments.output.write_text(_svg(seen), encoding="utf-8")


async def _watched(endpoint: str, seconds: float) -> Seen:
    last = Seen()
    end_at = time.monotonic() + seconds

    def show(seen: Seen) -> bool:
        nonlocal last
        last = seen
        # The last look is one at which the workers have something in hand.
        busy = seen.snapshot is not None and all(worker.running for worker in seen.snapshot.workers)
        now = time.monotonic()
        return now < end_at or (not busy and now < end_at + 20)

    loads = [asyncio.create_task(load) for load in (_queries(endpoint), _queries(endpoint), _bulk(endpoint), _hasty(endpoint))]
    await watch(endpoint, 1.0, show)
    for load in loads:
        load.cancel()
    await asyncio.gather(*loads, return_exceptions=True)
    return last


async def _queries(endpoint: str) -> None:
    """Short texts, 5 to 25 in a second."""
    async with AsyncClient(endpoint) as pool:
        for number in range(1_000_000):
            with contextlib.suppress(EmbedpoolError):
                await pool.embed([f"what is asked for the {number}th time"])
            rate = 15 + 10 * math.sin(2 * math.pi * time.monotonic() / ROUND_S)
            await asyncio.sleep(random.expovariate(rate))


async def _bulk(endpoint: str) -> None:
    """Docstrings by the dozen, with a pause now and then."""
    texts = [doc.text for doc in docstrings(2000)]
    async with AsyncClient(endpoint) as pool:
        while True:
            for _ in range(random.randint(4, 12)):
                with contextlib.suppress(EmbedpoolError):
                    await pool.embed(random.sample(texts, 24), priority="bulk")
            await asyncio.sleep(random.uniform(0.5, 4.0))


async def _hasty(endpoint: str) -> None:
    """Somebody who wants too much too soon, and is refused."""
    async with AsyncClient(endpoint) as pool:
        for number in range(1_000_000):
            with contextlib.suppress(EmbedpoolError):
                await pool.embed([f"{number} {i} " + "word " * 60 for i in range(300)], priority="bulk", timeout_s=0.1)
            await asyncio.sleep(random.uniform(4.0, 9.0))


def _svg(seen: Seen) -> str:
    assert seen.snapshot is not None
    console = Console(
        record=True,
        width=COLUMNS,
        height=LINES,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        highlight=False,
    )
    console.print(screen(seen.snapshot, seen.history, COLUMNS, LINES), end="")
    # Fonts are the reader's: a picture asks nobody for one.
    form = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = form.replace("Fira Code, monospace", FONTS)
    return console.export_svg(title="embedpool top", theme=THEME, code_format=form, unique_id="top")


if __name__ == "__main__":
    main()
