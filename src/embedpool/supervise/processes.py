"""Child processes: started, watched by pidfd, ended, and found again after a crash. No policy.

A child is known to be gone only when it was waited for. What outlives a supervisor that was killed is found by the next one
through the record file: process id and start time together name a process for ever (a pid alone is used again).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True, eq=False)
class Child:
    """A process of ours, running until `reap` has returned its status."""

    name: str
    pid: int
    pidfd: int
    started_at: float = field(default_factory=time.monotonic)

    def fileno(self) -> int:
        """Readable when the process has ended (pidfd_open(2)), so that a selector can wait for it."""
        return self.pidfd

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def reap(self) -> str:
        """Waits for the end, which must be near (pidfd readable, or after kill); how it ended, in words."""
        ended = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)
        assert ended is not None
        if ended.si_code == os.CLD_EXITED:
            return f"exit status {ended.si_status}"
        return f"{signal.Signals(ended.si_status).name}"


def spawn(name: str, module: str, arguments: Sequence[str], inherit: Sequence[int]) -> Child:
    """Starts `python -m module arguments` as a fresh interpreter, in a process group of its own.

    stdout is closed to it, so that a supervisor's stdout carries only what the supervisor says.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=tuple(inherit),
        process_group=0,
        # numpy's BLAS would start a thread per core at its import; we use none of it, and a forkserver must have one thread.
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    child = Child(name, process.pid, os.pidfd_open(process.pid))
    process.returncode = 0  # it is waited for through its pidfd, like a forked one: nobody else must reap it
    return child


@contextlib.contextmanager
def ready_pipe() -> Iterator[tuple[int, int]]:
    """(ready, tell): a child that is spawned within the block inherits `tell` and writes a byte to it once it serves.
    `ready` is the caller's, and at its end when the child has ended without."""
    ready, tell = os.pipe()
    try:
        yield ready, tell
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(tell)


def end(children: Sequence[Child], patience_s: float) -> None:
    """Ends them all: SIGTERM, and SIGKILL after `patience_s`. Returns when every one was reaped."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + patience_s
    for child in children:
        if not select.select([child], [], [], max(0.0, deadline - time.monotonic()))[0]:
            child.kill()
        child.reap()


def end_strays(known: Sequence[int]) -> None:
    """Kills and reaps children that nobody knows: those of a forkserver that died in the middle of a fork."""
    for task in Path("/proc/self/task").iterdir():
        for pid in map(int, _text(task / "children").split()):
            if pid not in known:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


# ── the record of a supervisor that may be killed ────────────────────────────────────────────────────────────────────


def start_time(pid: int) -> int | None:
    """The process's start in clock ticks since boot (proc(5), stat field 22); None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def record(path: Path, pids: Sequence[int]) -> None:
    """Writes down who runs, whole or not at all; where the disk is full, in the place of what was written down before.

    Clients' segments may fill it, and a pool does not end for that. One that finds it full at its start has no record; its
    children still end with it (lifeline), but for those that are stopped at that moment.
    """
    rows = json.dumps([(pid, start_time(pid)) for pid in pids])
    aside = path.with_suffix(".new")
    try:
        aside.write_text(rows)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        with contextlib.suppress(OSError), path.open("r+") as file:
            file.write(rows.ljust(path.stat().st_size))


def end_recorded(path: Path, patience_s: float = 5.0) -> int:
    """Kills what a dead supervisor left, and waits until it is gone; returns how many processes that were."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return 0
    left = [pid for pid, started in rows if started is not None and start_time(pid) == started]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            _kill(pid, patience_s)
    path.unlink(missing_ok=True)
    return len(left)


def _kill(pid: int, patience_s: float) -> None:
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], patience_s)
    finally:
        os.close(fd)
