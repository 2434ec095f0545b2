"""The machine as /proc and /sys show it. Reads files below `root` and nothing else, so that a recorded tree is a machine too.

`read_bounds` is what can change while a pool runs, in some ten small files, read every few seconds; `read_machine` reads some
ten more per CPU. What a file does not say is taken as usual: each CPU a core of its own, one node, all equally fast.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from embedpool.supervise.cgroups import read_cpuset, read_quota, text
from embedpool.supervise.power import power_mode
from embedpool.supervise.topology import Bounds, Cpu, Machine, cpus_of

CPUS = "sys/devices/system/cpu"
LARGEST = 1024  # a capacity (Documentation/scheduler/sched-capacity.rst of Linux)


def read_bounds(root: Path = Path("/"), count: int = 0, process: str = "self") -> Bounds:
    """What the process may use now. `count` is how many CPUs there are where neither /proc nor /sys says."""
    # Not os.sched_getaffinity: it leaves out what is offline just now, and knows nothing of a recorded tree.
    affinity = _listed(_field(text(root / "proc" / process / "status"), "Cpus_allowed_list"))
    online = _listed(text(root / CPUS / "online")) or affinity or frozenset(range(count or os.cpu_count() or 1))
    return Bounds(online, affinity, read_cpuset(root, process), read_quota(root, process))


def read_machine(root: Path = Path("/"), count: int = 0, process: str = "self") -> Machine:
    """The machine that the process runs on, as far as it may use it."""
    bounds = read_bounds(root, count, process)
    numbers = sorted(bounds.usable)
    nodes, speeds = _nodes(root), _capacities(root, numbers)
    cpus = tuple(_cpu(root, number, nodes.get(number, 0), speeds[number]) for number in numbers)
    present = _listed(text(root / CPUS / "present")) or bounds.online
    return Machine(cpus, bounds, frozenset(present - bounds.online), _name(root), power_mode(root))


def _cpu(root: Path, number: int, node: int, capacity: int) -> Cpu:
    itself = frozenset({number})
    topology = root / CPUS / f"cpu{number}/topology"
    # thread_siblings_list is its name before Linux 5.3; cluster_cpus_list is there since 5.16.
    core = _listed(text(topology / "core_cpus_list")) or _listed(text(topology / "thread_siblings_list")) or itself
    cluster = _listed(text(topology / "cluster_cpus_list")) or core
    package = text(topology / "physical_package_id").strip()
    return Cpu(
        number=number,
        core=core | itself,
        cluster=cluster | core | itself,
        cache=_cache(root, number) or core,
        node=node,
        package=int(package) if package.isdecimal() else 0,
        capacity=capacity,
    )


def _cache(root: Path, number: int) -> frozenset[int] | None:
    """The CPUs that share this one's cache of the highest level."""
    levels = {}
    for index in (root / CPUS / f"cpu{number}/cache").glob("index[0-9]*"):
        level, shared = text(index / "level").strip(), _listed(text(index / "shared_cpu_list"))
        if level.isdecimal() and shared:
            levels[int(level)] = shared
    return levels[max(levels)] if levels else None


def _nodes(root: Path) -> dict[int, int]:
    """The NUMA node of each CPU: the first that lists it, since emulated nodes list those of a real one several times."""
    found: dict[int, int] = {}
    paths = (root / "sys/devices/system/node").glob("node[0-9]*")
    for path in sorted(paths, key=lambda path: int(path.name.removeprefix("node"))):
        for cpu in _listed(text(path / "cpulist")) or ():
            found.setdefault(cpu, int(path.name.removeprefix("node")))
    return found


def _capacities(root: Path, numbers: Iterable[int]) -> dict[int, int]:
    """From cpu_capacity, which ARM has and x86 since Linux 6.12; else by the highest frequency."""
    told = {number: text(root / CPUS / f"cpu{number}/cpu_capacity").strip() for number in numbers}
    if all(word.isdecimal() for word in told.values()):
        return {number: int(word) for number, word in told.items()}
    # Atom cores beside Core ones do half the multiplications per cycle: two units of 128 bits against two of 256.
    halves = _listed(text(root / "sys/devices/cpu_atom/cpus")) or frozenset()
    words = {number: text(root / CPUS / f"cpu{number}/cpufreq/cpuinfo_max_freq").strip() for number in told}
    if not all(word.isdecimal() and int(word) for word in words.values()):
        return dict.fromkeys(told, LARGEST)
    speeds = {number: int(word) / (2 if number in halves else 1) for number, word in words.items()}
    fastest = max(speeds.values())
    return {number: round(LARGEST * speed / fastest) for number, speed in speeds.items()}


def _name(root: Path) -> str:
    """What the machine or its processor is called; "" where nothing says."""
    cpuinfo = text(root / "proc/cpuinfo")
    names = (
        text(root / "proc/device-tree/model").rstrip("\0\n"),
        _field(cpuinfo, "model name"),
        text(root / "sys/class/dmi/id/product_name").strip(),
    )
    return next(filter(None, names), "")


def _field(lines: str, name: str) -> str:
    """The value of the first line "name : value"; "" where there is none."""
    for line in lines.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return ""


def _listed(words: str) -> frozenset[int] | None:
    """The CPUs of a list; None where it is empty or none."""
    try:
        return cpus_of(words) or None
    except ValueError:
        return None
