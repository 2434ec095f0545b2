"""What the pool's processes use: processor time and memory, as the kernel counts them. Read from /proc, so of this machine
only.

The pool's status names its supervisor; all other processes of it are below that one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from embedpool.bench.results import Part
from embedpool.memory import pss_bytes

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROLES = ("supervisor", "router", "workers", "forkserver", "gateways", "other")


@dataclass(frozen=True, slots=True)
class Used:
    """Processor seconds so far: `pool` by process id, 0 ids where the pool is not of this machine; `loads`, and `busy`, which
    is the whole machine's with what its host took; None where /proc does not tell."""

    at: float
    roles: Mapping[int, str]
    pool: Mapping[int, float]
    loads: float
    busy: float | None


def used(supervisor: int, loads: Iterable[int], at: float) -> Used:
    roles = roles_below(supervisor)
    seconds = {pid: cpu for pid in roles if (cpu := cpu_s(pid)) is not None}
    return Used(at, roles, seconds, sum(cpu_s(pid) or 0.0 for pid in loads), busy_s())


def parts(before: Used, after: Used) -> tuple[Part, ...]:
    """Every kind of process, in ROLES' order: cores between the two instants, memory now. A process that was replaced in
    between counts from its start."""
    found = []
    for role in ROLES:
        pids = [pid for pid, its in after.roles.items() if its == role]
        if pids:
            cpu = [after.pool[pid] - before.pool.get(pid, 0.0) for pid in pids if pid in after.pool]
            cores = round(sum(cpu) / (after.at - before.at), 4) if cpu else None
            sizes = [pss_bytes(pid) for pid in pids]
            found.append(Part(role=role, processes=len(pids), cores=cores, pss_bytes=sum(sizes) if all(sizes) else None))
    return tuple(found)


def other_cores(before: Used, after: Used) -> float | None:
    """Cores that were busy with neither the pool nor its loads nor this process."""
    if before.busy is None or after.busy is None:
        return None
    ours = sum(seconds - before.pool.get(pid, 0.0) for pid, seconds in after.pool.items()) + after.loads - before.loads
    return round(max(0.0, after.busy - before.busy - ours) / (after.at - before.at), 3)


def roles_below(supervisor: int) -> dict[int, str]:
    """The supervisor and all processes that descend from it; {} if it is not to be seen from here."""
    found: dict[int, str] = {}
    waiting = [supervisor] if _is_ours(supervisor) else []
    while waiting:
        pid = waiting.pop()
        found[pid] = "supervisor" if pid == supervisor else _role(pid)
        waiting += [child for child in children(pid) if child not in found]
    return found


def _is_ours(pid: int) -> bool:
    """Whether the process is a pool's, and not another one that has its number here: the pool may be in a container."""
    try:
        return pid > 0 and b"embedpool" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """From proc(5), /proc/PID/task/TID/children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def _role(pid: int) -> str:
    """By the name that a process has given itself, or the module that it runs."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "other"
    if name.startswith("embedpool-w"):
        return "workers"
    if name == "embedpool-fork":
        return "forkserver"
    if name == "embedpool-http":
        return "gateways"
    return "router" if b"embedpool.router" in words else "other"


def cpu_s(pid: int) -> float | None:
    """Processor time of a process so far, all its threads (proc_pid_stat(5): utime and stime); None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def busy_s() -> float | None:
    """Of the whole machine, with steal (proc_stat(5): all but idle and iowait; guests are in user already)."""
    try:
        user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft + steal) / TICKS_PER_S
