"""Out of memory, a worker dies and never the router: seen with the kernel's own out-of-memory killer, in a memory cgroup of
this test's own. Where no such cgroup can be made, the reason is said and nothing tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedpool import Client
from tests.support import COMMAND, alive, children, read_line, router_of, serving, wait_until, workers_of

MEMORY = Path("/sys/fs/cgroup/memory")  # version 1; version 2 has all in one hierarchy
ROOM = 96 << 20  # what the pool and the one who takes memory may have on top of what the pool has
HOG = """
import mmap, sys, time
taken = []
print("begins", flush=True)
for _ in range(int(sys.argv[1]) >> 20):
    taken.append(mmap.mmap(-1, 1 << 20))
    taken[-1].write(b"x" * (1 << 20))
    time.sleep(0.01)  # so that one worker's memory is enough until the test has seen its end
time.sleep(30)
"""


def _hierarchy() -> tuple[Path, str]:
    """Where memory cgroups are made, and the file for the limit. Skips."""
    if os.geteuid() != 0:
        pytest.skip("a memory limit needs root")
    if (MEMORY / "memory.limit_in_bytes").exists():
        return MEMORY, "memory.limit_in_bytes"
    unified = Path("/sys/fs/cgroup")
    if "memory" in _text(unified / "cgroup.subtree_control").split():
        return unified, "memory.max"
    pytest.skip("this machine has no memory cgroup to make another one in")


def _score(pid: int) -> int:
    return int(_text(Path(f"/proc/{pid}/oom_score_adj")))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.fixture
def limited() -> Iterator[tuple[Path, Path]]:
    """A memory cgroup, and the file of its limit; gone afterwards."""
    top, limit = _hierarchy()
    group = top / f"embedpool-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made: {error.strerror}")
    try:
        yield group, group / limit
    finally:
        wait_until(lambda: not _text(group / "cgroup.procs"), 10.0, "the cgroup to be empty")
        group.rmdir()


def _within(group: Path, command: list[str]) -> subprocess.Popen[str]:
    enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    return subprocess.Popen(["sh", "-c", enter, str(group), *command], stdout=subprocess.PIPE, text=True)


def _used(group: Path) -> int:
    for name in ("memory.usage_in_bytes", "memory.current"):
        if _text(group / name):
            return int(_text(group / name))
    raise AssertionError("a memory cgroup tells how much is used")


def test_workers_offer_themselves_and_nobody_else_does() -> None:
    with serving() as server:
        own = _score(os.getpid())
        wait_until(lambda: len(workers_of(server.pid)) == 2, 10.0, "the second one, which may start after the pool is ready")
        workers = workers_of(server.pid)
        wait_until(lambda: {_score(pid) for pid in workers} == {max(500, own)}, 10.0, "the second one to have begun")
        assert {_score(pid) for pid in (server.pid, *children(server.pid)) if pid not in workers} == {own}


def test_the_kernel_ends_a_worker_and_the_pool_goes_on(limited: tuple[Path, Path]) -> None:
    group, limit = limited
    with tempfile.TemporaryDirectory(prefix="embedpool-test-", dir="/dev/shm") as made:
        endpoint = f"ipc://{made}/run/embedpool.sock"
        serve = [*COMMAND, "serve", "--model", "minilm", "--workers", "2", "--runtime-dir", f"{made}/run"]
        pool, hog = _within(group, serve), None
        try:
            assert "ready" in read_line(pool, 60.0)
            wait_until(lambda: len(workers_of(pool.pid)) == 2, 10.0)
            with Client(endpoint) as client:
                before = client.embed(["as before"])
                workers, router = workers_of(pool.pid), router_of(pool.pid)
                most = _used(group) + ROOM
                limit.write_text(str(most))
                # Pages of files, which are much of it, are taken back first; with half of the limit on top of what it uses,
                # a worker has the highest score even then.
                hog = _within(group, [sys.executable, "-c", HOG, str(most)])
                assert read_line(hog, 10.0) == "begins\n"
                wait_until(lambda: not all(map(alive, workers)), 30.0, "the kernel to end a worker")
                limit.write_text(str(1 << 40))
                hog.kill()
                assert alive(router) and router_of(pool.pid) == router
                assert (client.embed(["as before"], timeout_s=20.0) == before).all()
                wait_until(lambda: len(workers_of(pool.pid)) == 2, 10.0, "another worker")
        finally:
            for process in (hog, pool):
                if process is not None:
                    process.terminate()
                    process.wait(20)
                    assert process.stdout is not None
                    process.stdout.close()
