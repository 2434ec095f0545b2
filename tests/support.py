"""What tests over real processes share: a server of one's own, finding its parts by pid, and waiting with a deadline."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedpool import Client
from embedpool.models.echo import EchoEncoder, echo_spec, echo_vector

COMMAND = (sys.executable, "-P", "-m", "embedpool")


def wait_until(true: Callable[[], bool], within_s: float, what: str = "") -> float:
    """Seconds until the condition held; fails the test when it does not in time."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > within_s:
            raise AssertionError(f"not within {within_s} s: {what or true}")
        time.sleep(0.01)
    return time.monotonic() - began


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The process's living children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return [child for child in found if alive(child)]


def part(supervisor: int, name: str) -> list[int]:
    """Pids of a supervisor's children that run a module ("embedpool.router") or have a name ("embedpool-w"), oldest first."""
    found = []
    for pid in children(supervisor):
        try:
            of_module = name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if of_module or Path(f"/proc/{pid}/comm").read_text().startswith(name):
                found.append(pid)
        except OSError:
            pass
    return sorted(found)


def router_of(supervisor: int) -> int:
    return part(supervisor, "embedpool.router")[0]


def workers_of(supervisor: int) -> list[int]:
    return part(supervisor, "embedpool-w")


def forkserver_of(supervisor: int) -> int:
    return part(supervisor, "embedpool-fork")[0]


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, number)


@dataclass(slots=True)
class Server:
    """A running `embedpool serve`."""

    process: subprocess.Popen[str]
    runtime_dir: Path
    endpoint: str
    ready_line: str

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, within_s: float = 10.0) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)


def launch(arguments: Sequence[str], environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`embedpool` with these arguments; stdout and stderr are pipes."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    )


def read_line(process: subprocess.Popen[str], within_s: float) -> str:
    """The next line of its stdout, "" when it ended without one."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], within_s)
    assert ready, f"no line within {within_s} s"
    return process.stdout.readline()


@contextmanager
def serving(*arguments: str, runtime_dir: Path | None = None, model: str = "echo", workers: str = "2") -> Iterator[Server]:
    """A server in a directory of its own, stopped and checked to have left nothing. `workers` "": as its configuration says."""
    with tempfile.TemporaryDirectory(prefix="embedpool-test-", dir="/dev/shm") as made:
        place = runtime_dir or Path(made) / "run"
        given = [word for name, value in (("--model", model), ("--workers", workers)) if value for word in (name, value)]
        process = launch(["serve", *given, "--runtime-dir", str(place), *arguments])
        try:
            line = read_line(process, 60.0)
            if not line:
                raise AssertionError(f"did not start: {process.communicate(timeout=10)[1]}")
            yield Server(process, place, f"ipc://{place}/embedpool.sock", line)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()


def segments(server: Server) -> int:
    """How many sessions of a pool hold shared memory."""
    with Client(server.endpoint, segment_bytes=0) as client:
        found: int = json.loads(client.status())["sessions"]["segments"]
        return found


_SPEC = echo_spec("echo")
_ECHO = EchoEncoder(_SPEC)


def expected(texts: Sequence[str], dim: int = 384) -> np.ndarray:
    """What the echo model gives, unit length, computed here."""
    rows = [echo_vector(tokens, 384)[:dim] for tokens in _ECHO.tokens(texts, "right")]
    return np.stack([row / np.linalg.norm(row) for row in rows]) if rows else np.empty((0, dim), np.float32)


def same(found: np.ndarray, texts: Sequence[str]) -> bool:
    """Whether these are the echo model's vectors of these texts, in order."""
    return found.shape == (len(texts), 384) and bool(np.allclose(found, expected(texts), atol=1e-6))
