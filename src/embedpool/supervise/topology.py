"""What a machine's processors are to us: records without any decision, and CPU lists as the kernel writes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """`cpus`: CPUs' worth of time that the cgroup `group` grants to all its processes together."""

    cpus: float
    group: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What of the machine this process may use; it can change while it runs.

    `affinity` None: the system does not say, and no process can be pinned. `cpuset` None: no cgroup restricts it.
    """

    online: frozenset[int]
    affinity: frozenset[int] | None
    cpuset: frozenset[int] | None
    quota: Quota | None

    @property
    def usable(self) -> frozenset[int]:
        """Never empty: a process whose mask names only CPUs that are offline is run by the kernel on others (cpuset(7))."""
        by_mask = self.online if self.affinity is None else self.online & self.affinity
        by_group = by_mask if self.cpuset is None else by_mask & self.cpuset
        return by_group or by_mask or self.online


@dataclass(frozen=True, slots=True)
class Cpu:
    """One CPU of the kernel's (a hardware thread). `core`, `cluster`, `cache`: the CPUs of the same physical core, cluster and
    last-level cache, itself among them. `capacity`: what it can compute, 1024 for the fastest of the machine."""

    number: int
    core: frozenset[int]
    cluster: frozenset[int]
    cache: frozenset[int]
    node: int = 0
    package: int = 0
    capacity: int = 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """`cpus`: those that are usable, by number. `offline`: those that are there but switched off. `name` may be empty,
    and so may `power_mode`, which a Jetson has."""

    cpus: tuple[Cpu, ...]
    bounds: Bounds
    offline: frozenset[int] = frozenset()
    name: str = ""
    power_mode: str = ""

    @property
    def quota(self) -> Quota | None:
        return self.bounds.quota

    @property
    def can_pin(self) -> bool:
        return self.bounds.affinity is not None


def cpus_of(text: str) -> frozenset[int]:
    """The CPUs of a list such as "0-3,8" (cpuset(7), list format); none of an empty one. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def spelled(cpus: Iterable[int]) -> str:
    """The list in the kernel's format: "0-3,8"; "none" for none."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs) or "none"
