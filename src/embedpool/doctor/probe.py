"""The doctor's facts that are found by trying: system calls, the clock, ONNX Runtime in a child, a pool that runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

from embedpool.client import Client
from embedpool.doctor.facts import Pool, Runtime
from embedpool.errors import EmbedpoolError
from embedpool.supervise.cgroups import text

LOAD_S = 60.0
ANSWER_S = 2.0
READINGS, ROUNDS = 2000, 5


def clock_ns() -> float:
    """What one reading of the monotonic clock takes, Python's call included; the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter_ns()
        for _ in range(READINGS):
            time.monotonic()
        best = min(best, (time.perf_counter_ns() - began) / READINGS)
    return best


def kernel_needs(place: Path) -> dict[str, str]:
    """What a pool asks of the kernel, and why it does not get it, "" where it does. Files are tried in `place`."""
    return {
        "pidfd_open": _tried(lambda: os.close(os.pidfd_open(os.getpid()))),
        "memfd_create": _tried(lambda: os.close(os.memfd_create("embedpool-doctor"))),
        "eventfd": _tried(lambda: os.close(os.eventfd(0))),
        "SOCK_SEQPACKET": _tried(_pair),
        "flock": _tried(lambda: _file(place, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX))),
        "posix_fallocate": _tried(lambda: _file(place, lambda fd: os.posix_fallocate(fd, 0, 4096))),
        "sched_setaffinity": _tried(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))),
    }


def _tried(call: Callable[[], object]) -> str:
    try:
        call()
    except (OSError, AttributeError) as error:
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ""


def _pair() -> None:
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
        end.close()


def _file(place: Path, use: Callable[[int], object]) -> None:
    """A place where nothing can be written is another check's business."""
    if os.access(place, os.W_OK | os.X_OK):
        with tempfile.TemporaryFile(dir=place) as file:
            use(file.fileno())


def runtime() -> Runtime:
    """ONNX Runtime, loaded as a worker loads it, and which installed packages bring it."""
    packages = tuple(sorted(set(packages_distributions().get("onnxruntime", []))))
    command = [sys.executable, "-P", "-m", "embedpool.doctor.runtime"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_S, stdin=subprocess.DEVNULL, check=False)
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Runtime("", "", "", packages, f"it did not load within {LOAD_S:.0f} s")
    except ValueError:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        return Runtime("", "", "", packages, last)
    return Runtime(found["version"], found["build"], found["providers"], packages)


# ── a pool ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Running:
    """`pids`: supervisor, router, workers and whatever else is its child."""

    facts: Pool
    pids: tuple[int, ...]


def running_pool(endpoint: str) -> Running | None:
    """The pool that answers there within ANSWER_S; None where none does."""
    if endpoint.startswith("ipc://") and not Path(endpoint.removeprefix("ipc://")).exists():
        return None
    try:
        with Client(endpoint, segment_bytes=0, connect_timeout_s=ANSWER_S) as client:
            began = time.monotonic()
            told = json.loads(client.status(timeout_s=ANSWER_S))
    except EmbedpoolError:
        return None
    answer_ms = (time.monotonic() - began) * 1e3
    pids = _family(int(told["pool"]["pid"]))
    workers, reload = told["workers"], told["reload"]
    facts = Pool(
        answer_ms=answer_ms,
        state=told["state"],
        reason=told["reason"],
        version=told["pool"]["version"],
        workers=len(workers),
        ready=sum(worker["state"] in ("idle", "busy") for worker in workers),
        restarts=sum(worker["restarts"] for worker in workers),
        reload=reload["reason"] if reload["state"] == "failed" else "",
        segment_bytes=told["sessions"]["segment_bytes"],
        talking=tuple(pid for pid in pids[1:] if not _is_silent(pid)),
    )
    return Running(facts, pids)


def _family(supervisor: int) -> tuple[int, ...]:
    """The supervisor and its children; only itself where it runs in another container."""
    found = [supervisor]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{supervisor}/task").iterdir():
            found += [int(pid) for pid in text(task / "children").split()]
    return tuple(found)


def _is_silent(pid: int) -> bool:
    """Whether its environment switches telemetry off; True where it cannot be read: another user's is not ours to judge."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return True
    return not any(variables) or b"ORT_DISABLE_TELEMETRY=1" in variables
