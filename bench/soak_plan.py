"""What happens when in a soak: visits, bulk bursts, kills and reloads. Pure: the same seed gives the same plan.

Every minute begins with BUSY_S seconds of trouble and ends in quiet: only queries and one last burst go on, stalled clients
have woken up or are dead, and killed workers have been replaced. The last LOOK_S seconds of it are the quiet moments, which
are compared with each other: whatever is more there than a minute ago was left behind.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["leaves", "inline", "dies", "dies at work", "stalls", "stalls and dies", "cancels", "refused", "garbage"]

MINUTE_S, BUSY_S, LOOK_S = 60.0, 45.0, 5.0
STALL_S = (1.0, 6.0)  # over before the quiet moments: BUSY_S + 6 + a client's work < MINUTE_S - LOOK_S
KILL_S = (15.0, 30.0)  # between two kills of a worker: it is no more than a minute old when it is looked at
RELOAD_EVERY_S, RELOAD_AT_S = 120.0, 20.0
BURST_EVERY_S = 9.0  # 256 texts take two workers 2 to 3 seconds
LAST_BURST_S = BUSY_S + 1.5  # after a minute's last kill: at the quiet moments every worker has done its share of such work
WEIGHTS: dict[Kind, float] = {
    "leaves": 6,
    "inline": 2,
    "dies": 2,
    "dies at work": 2,
    "stalls": 2,
    "stalls and dies": 1,
    "cancels": 2,
    "refused": 2,
    "garbage": 1,
}


@dataclass(frozen=True, slots=True)
class Visit:
    """A client that comes `due_s` after the beginning. `stall_s`: how long it is stopped, if it is."""

    due_s: float
    kind: Kind
    stall_s: float
    seed: int


def is_busy(at_s: float) -> bool:
    return at_s % MINUTE_S < BUSY_S


def is_quiet(at_s: float) -> bool:
    """Whether this instant is one of the quiet moments."""
    return at_s % MINUTE_S >= MINUTE_S - LOOK_S


def visits(arrivals_s: list[float], seed: int) -> list[Visit]:
    """Of those that would come in a quiet part, none."""
    rng = random.Random(seed)
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    found = [Visit(due, rng.choices(kinds, weights)[0], rng.uniform(*STALL_S), rng.randrange(1 << 30)) for due in arrivals_s]
    return [visit for visit in found if is_busy(visit.due_s)]


def bursts(seconds: float) -> list[float]:
    often = [at for i in range(int(seconds / BURST_EVERY_S) + 1) if is_busy(at := i * BURST_EVERY_S)]
    last = [i * MINUTE_S + LAST_BURST_S for i in range(int(seconds / MINUTE_S) + 1)]
    return sorted(at for at in (*often, *last) if at < seconds)


def kills(seconds: float, seed: int) -> list[float]:
    """Instants at which a worker is killed; those that fall into a quiet part come at the next busy one."""
    rng, found, at = random.Random(seed), list[float](), 0.0
    while (at := at + rng.uniform(*KILL_S)) < seconds:
        if not is_busy(at):
            at = (at // MINUTE_S + 1) * MINUTE_S + rng.uniform(0.0, 5.0)
        if at < seconds:
            found.append(at)
    return found


def reloads(seconds: float) -> list[float]:
    return [at for i in range(int(seconds / RELOAD_EVERY_S) + 1) if (at := i * RELOAD_EVERY_S + RELOAD_AT_S) < seconds]
