"""What cgroups grant a process: CPU time and CPUs, of its own group and all above it, in both versions of the interface.

Where a hierarchy is mounted, and which part of it, is read from mountinfo: under Docker without a cgroup namespace the mount
shows the container's group as its root while /proc/self/cgroup names it from the host's (cgroups(7), cgroup_namespaces(7)).
On a machine with both versions a controller belongs to one of them; the other one has no file for it, which says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedpool.supervise.topology import Quota, cpus_of


@dataclass(frozen=True, slots=True)
class Group:
    """One cgroup of the way up. `name` is its path as /proc/self/cgroup would say it."""

    path: Path
    name: str


def groups(root: Path, controller: str, process: str = "self") -> list[Group]:
    """The process's own group first, then those above it, of version 2 and, for this controller, of version 1."""
    ways = (_way(root, "", "cgroup2", process), _way(root, controller, "cgroup", process))
    return [group for way in ways for group in way]


def read_quota(root: Path = Path("/"), process: str = "self") -> Quota | None:
    """The least that any of the groups grants; None without a limit."""
    found = [Quota(cpus, group.name) for group in groups(root, "cpu", process) if (cpus := _limit(group.path)) is not None]
    return min(found, key=lambda quota: quota.cpus, default=None)


def read_cpuset(root: Path = Path("/"), process: str = "self") -> frozenset[int] | None:
    """The CPUs that all of the groups allow; None where none says anything."""
    allowed: frozenset[int] | None = None
    for group in groups(root, "cpuset", process):
        # "effective" is what the kernel makes of the group's wish and of those above it; version 1 has it since Linux 3.17.
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            cpus = _cpus(group.path / name)
            if cpus:
                allowed = cpus if allowed is None else allowed & cpus
                break
    return allowed


def throttled(root: Path = Path("/"), process: str = "self") -> float:
    """The share of periods, since the group was made, in which a limit stopped it: the greatest of all groups; 0 without."""
    shares = [0.0]
    for group in groups(root, "cpu", process):
        counts = dict(line.split()[:2] for line in text(group.path / "cpu.stat").splitlines() if len(line.split()) == 2)
        if int(counts.get("nr_periods", 0)):
            shares.append(int(counts.get("nr_throttled", 0)) / int(counts["nr_periods"]))
    return max(shares)


def text(path: Path) -> str:
    """What the file says; "" where there is none, or it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _way(root: Path, controller: str, kind: str, process: str) -> list[Group]:
    own, mount = _own(root, controller, process), _mount(root, controller, kind)
    if own is None or mount is None:
        return []
    point, shown = mount
    inside = own[len(shown) :] if shown != "/" and (own + "/").startswith(shown + "/") else own if shown == "/" else ""
    parts = [part for part in inside.split("/") if part not in ("", "..")]
    top = root / point.lstrip("/")
    prefix = shown.rstrip("/")
    return [
        Group(top.joinpath(*parts[:depth]), prefix + "/" + "/".join(parts[:depth]) if depth else shown)
        for depth in range(len(parts), -1, -1)
    ]


def _own(root: Path, controller: str, process: str) -> str | None:
    """The path of the process's group, as we see it: in the hierarchy of the controller in version 1; "" is version 2's."""
    for line in text(root / "proc" / process / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (number == "0" and not controllers) if not controller else controller in controllers.split(","):
            return path
    return None


def _mount(root: Path, controller: str, kind: str) -> tuple[str, str] | None:
    """Where the hierarchy is mounted, and which of its groups is seen there."""
    for line in text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, of = left.split(), right.split()
        if len(fields) > 4 and len(of) > 2 and of[0] == kind and (not controller or controller in of[2].split(",")):
            return fields[4], fields[3]
    return None


def _limit(path: Path) -> float | None:
    """The group's own limit, in CPUs: cpu.max of version 2, cfs_quota_us (-1: none) of version 1."""
    words = text(path / "cpu.max").split() or [
        text(path / "cpu.cfs_quota_us").strip(),
        text(path / "cpu.cfs_period_us").strip(),
    ]
    try:
        limit, period = map(int, words)
    except ValueError:  # "max", or no such file
        return None
    return limit / period if limit > 0 and period > 0 else None


def _cpus(path: Path) -> frozenset[int]:
    try:
        return cpus_of(text(path))
    except ValueError:
        return frozenset()
