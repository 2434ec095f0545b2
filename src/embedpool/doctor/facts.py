"""What the doctor knows of a machine and its pool: records without any decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedpool.config import Config
from embedpool.supervise.cores import CorePlan
from embedpool.supervise.topology import Machine

Verdict = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `costs` and `mend` are empty where all is well."""

    name: str
    verdict: Verdict
    found: str
    costs: str = ""
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that a pool uses, or would make. `problem` says why it cannot, "" if it can."""

    path: str
    exists: bool
    problem: str
    tmpfs: bool
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Frequency:
    """Of the usable CPUs; kHz. `allowed_khz` is the least that any may go up to now, `highest_khz` what they were made for."""

    governors: tuple[str, ...]
    driver: str
    preference: str  # energy_performance_preference, where the driver has one
    least_khz: int
    allowed_khz: int
    highest_khz: int


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What else runs. `others`: CPUs' worth of time that other programs used in a moment's measurement; `steal`: the share that
    the hypervisor gave to other machines; `pressure`: percent of the last minute in which some task waited for a CPU, None if
    unknown."""

    others: float
    steal: float
    pressure: float | None
    load: float


@dataclass(frozen=True, slots=True)
class Runtime:
    """ONNX Runtime, as a child process found it. `error`: why it could not be loaded. `packages`: those that bring it."""

    version: str
    build: str
    providers: str
    packages: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Left:
    """What lies in the runtime directory. `holder`: the process that has the lock, 0 for none."""

    lock: bool
    holder: int
    socket: bool
    segments: int


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool that answers at the endpoint."""

    answer_ms: float
    state: str
    reason: str
    version: str
    workers: int
    ready: int
    restarts: int
    reload: str  # of the last reload: why it failed, "" if it did not
    segment_bytes: int
    talking: tuple[int, ...]  # its processes in whose environment ONNX Runtime's telemetry is not switched off


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is judged. `kernel`: what the pool needs of it, and why that cannot be had, "" where it can.
    `sockets`: the paths that a pool binds. `segment_bytes`: what a usual client asks for."""

    config: Config
    machine: Machine
    plan: CorePlan
    throttled: float
    frequency: Frequency | None
    neighbours: Neighbours
    huge_pages: str
    descriptors: int
    processes_free: int | None
    clock: str
    clock_ns: float
    kernel: dict[str, str]
    arch: str
    features: tuple[str, ...]
    runtime: Runtime
    runtime_dir: Directory
    cache: Directory
    sockets: tuple[str, ...]
    segment_bytes: int
    left: Left
    pool: Pool | None
