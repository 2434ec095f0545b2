"""Which cores the workers get. `plan` is pure; `read_machine` reads /proc and /sys.

One worker per physical core: hyper-thread siblings share the arithmetic units that an encoder keeps busy. The affinity mask
and the cgroup's CPU quota bound the number of workers; ONNX Runtime's own default would ignore both.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """`allowed`: the affinity mask. `siblings`: for each allowed CPU, the CPUs of its physical core. `quota`: CPUs' worth of
    time that the cgroup grants, None without a limit."""

    allowed: frozenset[int]
    siblings: dict[int, frozenset[int]]
    quota: float | None


@dataclass(frozen=True, slots=True)
class CorePlan:
    """The CPUs of each worker, and one sentence why; and how many GPUs the workers share out."""

    workers: tuple[tuple[int, ...], ...]
    reason: str
    gpus: int = 0


def plan(machine: Machine, workers: int, threads: int) -> CorePlan:
    """`workers` 0 means as many as fit. More workers than cores are spread round-robin: it is slower, but it is asked for."""
    cores = _physical(machine)
    most = len(cores) // threads
    limits = [f"{len(cores)} physical cores of {len(machine.allowed)} allowed CPUs"]
    if machine.quota is not None and machine.quota < len(cores):
        most = min(most, math.floor(machine.quota) // threads)
        limits.append(f"a quota of {machine.quota:g} CPUs")
    count = workers or max(most, 1)
    groups = tuple(tuple(cores[(w * threads + t) % len(cores)] for t in range(min(threads, len(cores)))) for w in range(count))
    asked = "asked for" if workers else "as many as fit"
    many = f"{count} worker{'s' * (count > 1)} with {threads} thread{'s' * (threads > 1)} each"
    reason = f"{many} ({asked}): {', '.join(limits)}"
    if count > max(most, 1):
        reason += "; more than fit, so they share cores"
    return CorePlan(tuple(tuple(sorted(set(group))) for group in groups), reason)


def _physical(machine: Machine) -> list[int]:
    """The first allowed CPU of every physical core."""
    seen: set[int] = set()
    cores = []
    for cpu in sorted(machine.allowed):
        if cpu not in seen:
            cores.append(cpu)
            seen |= machine.siblings.get(cpu, frozenset({cpu}))
    return cores


def read_machine(root: Path = Path("/")) -> Machine:
    """This process's machine. `root` lets tests read a recorded tree."""
    allowed = frozenset(os.sched_getaffinity(0))
    siblings = {}
    for cpu in allowed:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"
        siblings[cpu] = _cpus(path.read_text()) if path.is_file() else frozenset({cpu})
    return Machine(allowed, siblings, read_quota(root))


def read_quota(root: Path = Path("/")) -> float | None:
    """The least cpu.max over this process's cgroup and its ancestors (cgroup v2), in CPUs."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
        own = next(line.partition("::")[2] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    mount = root / "sys/fs/cgroup"
    here = mount / own.lstrip("/")
    quotas = []
    for place in (here, *here.parents):
        try:
            limit, period = (place / "cpu.max").read_text().split()
            quotas += [int(limit) / int(period)] if limit != "max" else []
        except (OSError, ValueError):
            pass
        if place == mount:
            break
    return min(quotas, default=None)


def _cpus(text: str) -> frozenset[int]:
    """The CPUs of a list such as "0-3,8" (cpuset(7), list format)."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)
