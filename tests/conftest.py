"""After every test over real processes: no child, no segment, no socket, no descriptor is left."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedpool.client.link import open_link
from tests.support import alive, children, wait_until

SHM = Path("/dev/shm")

# Libraries of the integrations report to their makers unless told not to, and read this when they are imported.
os.environ.update({"HAYSTACK_TELEMETRY_ENABLED": "False", "ANONYMIZED_TELEMETRY": "False"})


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def ours() -> set[str]:
    """Runtime directories, but for those of pools that live and are no business of this test run."""
    return {path.name for path in SHM.glob("embedpool*") if not _strangers(path)}


def _strangers(place: Path) -> bool:
    try:
        holders = [int(lock.read_text().split()[1]) for lock in (place / "lock", *place.glob("*/lock")) if lock.exists()]
    except (OSError, ValueError, IndexError):
        return False
    return any(alive(holder) and not descends(holder) for holder in holders)


def descends(pid: int) -> bool:
    """Whether a process is this one's child, or a child's child."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


@pytest.fixture(scope="session", autouse=True)
def _context() -> None:
    """ZeroMQ's context of this process stays for good: made before descriptors are counted."""
    open_link("ipc:///nowhere").close()


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    if "unit" in Path(str(request.node.fspath)).parts:
        yield
        return
    pid = os.getpid()
    before, places, family = descriptors(), ours(), set(children(pid))
    yield
    wait_until(lambda: set(children(pid)) <= family, 5.0, f"children left: {children(pid)}")
    wait_until(lambda: ours() <= places, 5.0, f"left in /dev/shm: {ours() - places}")
    # ZeroMQ closes its sockets' descriptors in a thread of its own, a moment later.
    wait_until(lambda: descriptors() <= before, 5.0, f"descriptors: {before} before, {descriptors()} after")
