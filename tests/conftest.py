"""After every test over real processes: no child, no segment, no socket, no descriptor is left."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedpool.client.link import open_link
from tests.support import children, wait_until

SHM = Path("/dev/shm")


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def ours() -> set[str]:
    return {path.name for path in SHM.iterdir() if path.name.startswith("embedpool")}


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
