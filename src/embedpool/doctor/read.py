"""The doctor's facts from /proc, /sys and the file system. Changes nothing; takes a moment, for some are measured over one."""

from __future__ import annotations

import os
import platform
import re
import resource
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from embedpool.client.sync import SEGMENT_BYTES
from embedpool.config import SOCKET, Config, is_tmpfs
from embedpool.doctor.facts import Directory, Facts, Frequency, Left, Neighbours
from embedpool.doctor.probe import clock_ns, kernel_needs, running_pool, runtime
from embedpool.models.cache import cpu_features
from embedpool.supervise.cgroups import groups, text, throttled
from embedpool.supervise.cores import plan
from embedpool.supervise.machine import CPUS, read_machine
from embedpool.supervise.place import LOCK, SEGMENTS, WORKERS

MEASURED_S = 0.5
ROOT = Path("/")


def read_facts(config: Config) -> Facts:
    """Everything, for a pool with these settings: what the one that runs may use, else what this process may."""
    place, pool = config.runtime_path(), running_pool(config.endpoint_url())
    found = left(place, text(ROOT / "proc/locks"))
    # Its number means the same here only if the lock's holder has it too, and not where it runs in another container.
    process = str(found.holder) if pool is not None and found.holder == pool.pids[0] else "self"
    machine = read_machine(process=process)
    numbers = sorted(machine.bounds.usable)
    return Facts(
        config=config,
        machine=machine,
        plan=plan(machine, config.workers, config.threads_per_worker, config.pin),
        throttled=throttled(ROOT, process),
        frequency=frequency(ROOT, numbers),
        neighbours=neighbours(pool.pids if pool is not None else ()),
        huge_pages=chosen(text(ROOT / "sys/kernel/mm/transparent_hugepage/enabled")),
        descriptors=descriptors(text(ROOT / "proc" / process / "limits")),
        processes_free=processes_free(ROOT, process),
        clock=text(ROOT / "sys/devices/system/clocksource/clocksource0/current_clocksource").strip(),
        clock_ns=clock_ns(),
        kernel=kernel_needs(existing(place)),
        arch=platform.machine(),
        features=cpu_features(text(ROOT / "proc/cpuinfo")),
        runtime=runtime(),
        runtime_dir=directory(place, private=True),
        cache=directory(config.cache_path(), private=False),
        sockets=sockets(config),
        segment_bytes=SEGMENT_BYTES,
        left=found,
        pool=pool.facts if pool is not None else None,
    )


def frequency(root: Path, cpus: list[int]) -> Frequency | None:
    """None where the system does not show frequencies, as most virtual machines."""
    places = [root / CPUS / f"cpu{cpu}/cpufreq" for cpu in cpus]

    def khz(name: str) -> list[int]:
        return [int(word) for place in places if (word := text(place / name).strip()).isdecimal()]

    governors = tuple(sorted({text(place / "scaling_governor").strip() for place in places} - {""}))
    least, allowed, highest = khz("scaling_min_freq"), khz("scaling_max_freq"), khz("cpuinfo_max_freq")
    if not governors or not allowed or not highest:
        return None
    driver, preference = (text(places[0] / name).strip() for name in ("scaling_driver", "energy_performance_preference"))
    return Frequency(governors, driver, preference, min(least, default=0), min(allowed), max(highest))


def processes_free(root: Path, process: str = "self") -> int | None:
    """How many more processes the cgroups allow; None without a limit."""
    free = []
    for group in groups(root, "pids", process):
        most, now = text(group.path / "pids.max").strip(), text(group.path / "pids.current").strip()
        free += [int(most) - int(now)] if most.isdecimal() and now.isdecimal() else []
    return min(free, default=None)


def descriptors(limits: str) -> int:
    """How many a process may have open, by its /proc/PID/limits; this one where another user's cannot be read."""
    found = re.search(r"^Max open files +(\d+)", limits, re.MULTILINE)
    return int(found.group(1)) if found else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def chosen(line: str) -> str:
    """The word in brackets, as in "always [madvise] never"; "" where there is none."""
    found = re.search(r"\[(\w+)\]", line)
    return found.group(1) if found else ""


# ── neighbours ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Ticks:
    """Of all CPUs since boot (proc_stat(5)), in clock ticks."""

    busy: int
    steal: int
    total: int


def ticks(line: str) -> Ticks:
    """Of the line "cpu  user nice system idle iowait irq softirq steal guest guest_nice"; guests are in user and nice."""
    counts = [int(word) for word in line.split()[1:9]]
    user, nice, system, idle, waiting, irq, softirq, steal = counts + [0] * (8 - len(counts))
    busy = user + nice + system + irq + softirq
    return Ticks(busy, steal, busy + steal + idle + waiting)


def neighbours(pool: tuple[int, ...]) -> Neighbours:
    """Measured over MEASURED_S; `pool` are processes that are not others."""
    before, ours = ticks(_first_line()), _used(pool)
    time.sleep(MEASURED_S)
    after, ours = ticks(_first_line()), _used(pool) - ours
    total = max(1, after.total - before.total)
    # The machine's time, and not a quota's: neighbours are whoever else wants these CPUs.
    others = max(0, after.busy - before.busy - ours) / (MEASURED_S * os.sysconf("SC_CLK_TCK"))
    return Neighbours(
        others, (after.steal - before.steal) / total, pressure(text(ROOT / "proc/pressure/cpu")), os.getloadavg()[0]
    )


def pressure(psi: str) -> float | None:
    """Percent of the last minute in which some task waited for a CPU (Documentation/accounting/psi.rst of Linux)."""
    found = re.search(r"^some .*avg60=([\d.]+)", psi, re.MULTILINE)
    return float(found.group(1)) if found else None


def _first_line() -> str:
    return text(ROOT / "proc/stat").partition("\n")[0]


def _used(pids: tuple[int, ...]) -> int:
    """Clock ticks that these processes have run, proc_pid_stat(5)."""
    rests = [text(ROOT / f"proc/{pid}/stat").rpartition(")")[2].split() for pid in pids]
    return sum(int(rest[11]) + int(rest[12]) for rest in rests if len(rest) > 12)


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def sockets(config: Config) -> tuple[str, ...]:
    """The paths that a pool with these settings binds."""
    workers, url = str(config.runtime_path() / WORKERS), config.endpoint_url()
    return (workers, url.removeprefix("ipc://")) if url.startswith("ipc://") else (workers,)


def existing(path: Path) -> Path:
    """The path, or the nearest above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def directory(path: Path, private: bool) -> Directory:
    """`private`: it must be this user's own, as supervise.place asks for."""
    there = existing(path)
    room = os.statvfs(there)
    return Directory(str(path), path.exists(), _problem(path, there, private), is_tmpfs(there), room.f_bavail * room.f_frsize)


def _problem(path: Path, there: Path, private: bool) -> str:
    if not there.is_dir():
        return f"{there} is no directory"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written by user {os.geteuid()}"
    status = there.stat()
    if private and there == path and status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, and this is user {os.geteuid()}"
    if private and there == path and stat.S_IMODE(status.st_mode) & 0o022:
        return "others can write in it"
    return ""


def left(place: Path, locks: str) -> Left:
    """What a pool that runs, or one that was killed, has in its runtime directory."""
    lock, segments = place / LOCK, place / SEGMENTS
    try:
        count = sum(1 for _ in segments.iterdir())
    except OSError:
        count = 0
    return Left(lock.exists(), holder(locks, lock.stat().st_ino) if lock.exists() else 0, (place / SOCKET).exists(), count)


def holder(locks: str, inode: int) -> int:
    """The process that has a flock on this file by /proc/locks (proc_locks(5)); 0 for none. Trying to take it would have a pool
    that starts at this moment give up."""
    found = re.search(rf"^\d+: FLOCK +\S+ +WRITE +(-?\d+) +\w+:\w+:{inode} ", locks, re.MULTILINE)
    return int(found.group(1)) if found else 0
