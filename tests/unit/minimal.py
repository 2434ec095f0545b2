"""A history that fails, made as short as it can be and printed as the body of a transcript test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from linecache import getline

from embedpool.router import events as ev
from embedpool.router.core import Core
from tests.unit.histories import NAMES, RULES, SLICES_MS, History, Move, Player, choose
from tests.unit.shrink import Shrinker
from tests.unit.transcript import ask, core, joined, replies, sent

REPLAYS = 2000  # to make one short, per size of jobs: a second or two
NEARBY, MOST_SHRUNK = 200, 8  # seeds behind a failing one that are tried for a shorter history of the same fault

MakeCore = Callable[..., Core]


@dataclass(frozen=True, slots=True)
class Failing:
    """What went wrong, at the end of which history. `place` tells one fault from another."""

    history: History
    player: Player
    error: Exception

    @property
    def place(self) -> tuple[type, str]:
        trace = self.error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        assert trace is not None
        return type(self.error), f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"

    def __str__(self) -> str:
        file, line = self.place[1].rsplit(":", 1)
        why = str(self.error) or getline(file, int(line)).strip()
        return "\n".join((*self.lines(), f"# {type(self.error).__name__}: {why} ({os.path.basename(file)}, line {line})"))

    def lines(self) -> list[str]:
        """The history as the body of a transcript test, with what followed behind each event."""
        rules = ", ".join(f"{name}={value}" for name, value in {"slice_ms": self.history.slice_ms, **RULES}.items())
        lines = [f"made = core({rules})"]
        followed = [*self.player.actions, *[[]] * (len(self.player.log) - len(self.player.actions))]
        for (event, now), actions in zip(self.player.log, followed, strict=True):
            notes = [f"sent {sent(actions)}"] if sent(actions) else []
            notes += [f"replies {replies(actions)}"] if replies(actions) else []
            notes += [repr(action) for action in actions if not isinstance(action, ev.SendJob | ev.Reply)]
            lines.append(f"play(made, {source(event)}, {now})" + ("  # " + "; ".join(notes) if notes else ""))
        return lines


def source(event: ev.Event) -> str:
    """The event as a test would write it."""
    match event:
        case ev.Joined(worker, unit_ms=unit_ms):
            return f"joined({worker})" if event == joined(worker) else f"joined({worker}, {unit_ms})"
        case ev.Asked(session, embed):
            plain = ask(embed.id).ask
            texts = "[" + ", ".join(_text(text) for text in embed.texts) + "]"
            said = [f"{f}={getattr(embed, f)!r}" for f in embed.__struct_fields__ if getattr(embed, f) != getattr(plain, f)]
            given = [item for item in said if not item.startswith(("id=", "texts="))]
            whose = [f"session={session!r}"] if session != NAMES[0] else []
            return f"ask({', '.join([str(embed.id), texts, *whose, *given])})"
        case ev.Finished(worker, done, payload):
            rows = " + ".join(f"{bytes([byte])!r} * {len(list(same))}" for byte, same in groupby(payload)) or 'b""'
            failures = f", {done.failures!r}" if done.failures else ""
            return f"Finished({worker}, Done({done.id}, {done.run_ms}, {done.tokens}{failures}), {rows})"
        case _:
            return repr(event)


def _text(text: str) -> str:
    found = re.fullmatch(r"(.*?)(x{8,})", text)
    return f'"{found[1]}" + "x" * {len(found[2])}' if found else f'"{text}"'


def failing(history: History, make: MakeCore = core) -> Failing | None:
    """Plays it; what went wrong, if anything did."""
    player = Player(make(slice_ms=history.slice_ms, **RULES))
    try:
        player.play(history.moves)
    except Exception as error:
        return Failing(history, player, error)
    return None


def shrunk(found: Failing, make: MakeCore = core) -> Failing:
    """A minimal history with the same fault: the shortest over all sizes of jobs, as a size can be what a fault needs."""

    def replayed(slice_ms: int, moves: list[Move]) -> Failing | None:
        again = failing(History(slice_ms, moves), make)
        return again if again is not None and again.place == found.place else None

    least = found
    for slice_ms in sorted(SLICES_MS, key=lambda ms: ms != found.history.slice_ms):
        for begin in (found, least):
            if replayed(slice_ms, begin.history.moves):
                shrinker = Shrinker(partial(replayed, slice_ms), Move.simpler, REPLAYS)
                shorter = replayed(slice_ms, shrinker.smallest(begin.history.moves))
                assert shorter is not None, "the core is not a function of its events: the same history has another end"
                least = min(least, shorter, key=lambda failing: len(failing.player.log))
                break
    return least


def shortest(seed: int, make: MakeCore = core) -> Failing:
    """The shortest history with the fault that this seed's has. What no single move can be taken from may still be long: from
    where another one began, delta debugging often comes further."""
    nearby = [found for n in range(seed, seed + NEARBY) if (found := failing(choose(n), make)) is not None]
    alike = [found for found in nearby if found.place == nearby[0].place][:MOST_SHRUNK]
    return min((shrunk(found, make) for found in alike), key=lambda found: len(found.player.log))
