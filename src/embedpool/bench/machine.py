"""The machine, the versions and the pool that a number belongs to."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from msgspec import Struct, json

from embedpool.bench.results import Machine, Measured
from embedpool.protocol import ModelCard
from embedpool.supervise.power import power_mode

PACKAGES = ("embedpool", "onnxruntime", "numpy", "pyzmq", "msgspec", "tokenizers")


def this_machine() -> Machine:
    return Machine(
        processor=", power mode ".join(filter(None, (_processor() or platform.machine(), power_mode(Path("/"))))),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := _version(name))},
    )


def _processor() -> str:
    """From /proc/cpuinfo, or from the device tree where that names only the core (ARM boards)."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    try:
        return Path("/proc/device-tree/model").read_text().rstrip("\0")
    except OSError:
        return ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


# ── what the pool says of itself ─────────────────────────────────────────────────────────────────────────────────────


class _Pool(Struct, frozen=True):
    endpoint: str
    version: str
    pid: str


class _Worker(Struct, frozen=True):
    cores: tuple[int, ...]


class _Counters(Struct, frozen=True):
    answered: int
    alike: int


class Status(Struct, frozen=True):
    """What is read of `status`."""

    uptime_s: float
    pool: _Pool
    model: ModelCard
    workers: tuple[_Worker, ...]
    counters: _Counters

    @property
    def supervisor(self) -> int:
        """Its process id."""
        return int(self.pool.pid)

    def measured(self) -> Measured:
        return Measured(
            endpoint=self.pool.endpoint,
            version=self.pool.version,
            model=self.model.name,
            dim=self.model.dim,
            precision=self.model.precision,
            fingerprint=self.model.fingerprint,
            workers=len(self.workers),
            cores=tuple("+".join(map(str, worker.cores)) or "any" for worker in self.workers),
        )


def read_status(text: str) -> Status:
    return json.decode(text, type=Status)
