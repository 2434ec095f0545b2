"""Which cores the workers get, and why. Pure: a Machine is read by supervise.machine, or made by a test.

Rules
1. One worker, or one thread of a wide worker, per physical core: hyper-thread siblings share the arithmetic units that an
   encoder keeps busy.
2. Cores with less than SLOW of the fastest one's capacity get no worker unless more workers are asked for than the others hold.
3. The threads of a worker lie within one cluster, else one last-level cache, else one NUMA node: the smallest that holds them.
4. Fewer workers than cores are spread evenly over NUMA nodes, within them over caches, within these over clusters.
5. The quota of the cgroup bounds the number of threads: beyond it the kernel stops all of them for the rest of each period.
6. Router, supervisor and gateway are not pinned: they run on what is left, or between the workers where nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, zip_longest
from math import floor
from typing import TypeVar

from embedpool.supervise.reasons import Choice, Chosen, choices, sentence
from embedpool.supervise.topology import Bounds, Cpu, Machine

# A worker is given 20 ms of work at a time by what such work takes on average (router.cost), so that one at 0.6 needs 33 ms for
# it, and a query that it gets takes 1.7 times as long. Middle cores of three-cluster chips (0.85) pass; a Cortex-A55 beside an
# A76 (0.5) and Apple's efficiency cores (0.45) do not.
SLOW = 0.6
LEVELS: tuple[tuple[str, Callable[[Cpu], Hashable]], ...] = (
    ("cluster", lambda cpu: cpu.cluster),
    ("cache", lambda cpu: cpu.cache),
    ("node", lambda cpu: cpu.node),
    ("machine", lambda _: 0),
)
Group = tuple[Cpu, ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CorePlan:
    """The CPUs of each worker, one sentence why, and what it was made of.

    `bounds`: what it was made for. `rest`: usable CPUs that no worker has. `pinned` False: workers run where the kernel puts
    them, and only their number counts.
    """

    workers: tuple[tuple[int, ...], ...]
    reason: str
    bounds: Bounds
    rest: tuple[int, ...]
    pinned: bool
    choices: tuple[Choice, ...]


def plan(machine: Machine, workers: int, threads: int, pin: bool = True) -> CorePlan:
    """`workers` 0 means as many as fit. More workers than cores are spread round-robin: it is slower, but it is asked for."""
    cores = _physical(machine)
    fastest = max(cpu.capacity for cpu in cores)
    fast = [cpu for cpu in cores if cpu.capacity >= SLOW * fastest]
    slow = [cpu for cpu in cores if cpu.capacity < SLOW * fastest]
    wide = threads > len(fast)  # one worker then takes all there are
    width = min(threads, len(cores))
    home, groups = _groups(sorted(cores, key=lambda cpu: -cpu.capacity) if wide else fast, width)
    more = _groups(slow, width)[1] if not wide and len(slow) >= width else []
    most = len(groups)
    if machine.quota is not None:
        most = min(most, floor(machine.quota.cpus) // threads)
    count = workers or max(most, 1)
    ordered = [*_spread(groups), *_spread(more)]
    placed = tuple(tuple(sorted(_numbers(group))) for group in _laps(ordered, count))
    rest = tuple(sorted({cpu.number for cpu in machine.cpus} - {number for group in placed for number in group}))
    made = Chosen(
        machine=machine,
        cores=tuple(cpu.number for cpu in cores),
        slow=() if wide else tuple(cpu.number for cpu in slow),
        home=home,
        homes=_homes(home, cores if wide else fast),
        places=len(groups),
        most=most,
        count=count,
        asked=workers,
        threads=threads,
        over=count > len(ordered),
        rest=rest,
        pinned=pin and machine.can_pin,
        wanted_pins=pin,
    )
    return CorePlan(placed, sentence(made), machine.bounds, rest, made.pinned, choices(made))


def in_place(new: CorePlan, before: Sequence[tuple[int, ...]]) -> CorePlan:
    """The same plan, where each group of CPUs that `before` has at an index too keeps that index: that worker can stay."""
    left = list(new.workers)
    kept: list[tuple[int, ...] | None] = []
    for group in before[: len(new.workers)]:
        kept.append(group if group in left else None)
        if group in left:
            left.remove(group)
    kept += [None] * (len(new.workers) - len(kept))
    waiting = iter(left)
    return replace(new, workers=tuple(next(waiting) if group is None else group for group in kept))


def _physical(machine: Machine) -> list[Cpu]:
    """The first usable CPU of every physical core."""
    seen: set[int] = set()
    cores = []
    for cpu in machine.cpus:
        if cpu.number not in seen:
            cores.append(cpu)
            seen |= cpu.core
    return cores


def _groups(cores: Sequence[Cpu], width: int) -> tuple[str, list[Group]]:
    """As many groups of `width` cores as the smallest kind of home that holds one of them gives, and that kind's name."""
    for name, key in LEVELS:
        groups = [part[at : at + width] for part in _parts(cores, key) for at in range(0, len(part) - width + 1, width)]
        if groups:
            return name, sorted((tuple(group) for group in groups), key=_numbers)
    raise AssertionError(f"{len(cores)} cores hold no group of {width}")  # the whole machine is a level


def _homes(name: str, cores: Sequence[Cpu]) -> tuple[int, ...]:
    """How many cores each home of this kind has."""
    return tuple(len(part) for part in _parts(cores, dict(LEVELS)[name]))


def _spread(groups: Sequence[Group], levels: Sequence[str] = ("node", "cache", "cluster")) -> list[Group]:
    """In an order of which any beginning is spread evenly over the nodes, within each over its caches, and so on."""
    if not levels:
        return list(groups)
    key = dict(LEVELS)[levels[0]]
    rows = zip_longest(*(_spread(part, levels[1:]) for part in _parts(groups, lambda group: key(group[0]))))
    return [group for row in rows for group in row if group is not None]


def _parts(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    parts: dict[Hashable, list[T]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return list(parts.values())


def _laps(groups: Sequence[Group], count: int) -> list[Group]:
    """`count` of them, in order of their CPUs, the first ones again and again where there are fewer."""
    return list(islice(cycle(sorted(groups[:count], key=_numbers)), count))


def _numbers(group: Group) -> tuple[int, ...]:
    return tuple(cpu.number for cpu in group)
