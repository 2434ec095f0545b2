"""A machine that changes under a pool: real processes, and a tree of /proc and /sys that the test changes while clients ask.

Cores cannot be taken offline here; what the pool does is the same, for it looks at nothing but this tree. What the kernel does
with a worker whose core is gone, moving it, only makes it slower.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedpool import Client
from embedpool.supervise.topology import spelled
from tests.faults.test_replacing import Asking, same_384
from tests.faults.test_table import ready_workers, state, with_workers
from tests.fixtures.trees import write
from tests.support import children, kill, read_line, same, wait_until, workers_of

WORKER = """
import sys
from embedpool.worker.main import main
sys.exit(main(sys.argv[1:]))
"""
SUPERVISOR = """
import sys
from pathlib import Path
from embedpool import config
from embedpool.supervise.serve import serve
from embedpool.supervise.supervisor import Programs

given = {"model": "echo", "runtime_dir": sys.argv[1], "workers": sys.argv[3], "pin": sys.argv[4]}
ready = lambda started: print(started.endpoint, flush=True)
programs = Programs(worker="fake")
sys.exit(serve(config.load(given), ready, lambda warning: None, programs=programs, machine_root=Path(sys.argv[2])))
"""
MINE = sorted(os.sched_getaffinity(0))
TWO = MINE[:2]
WITHIN_S = 15.0  # two looks of 2 s each, and a start, on a machine that does other things too

pytestmark = pytest.mark.skipif(len(MINE) < 2, reason="needs two CPUs")


@dataclass(frozen=True, slots=True)
class Changing:
    """A pool, and the tree of the machine that it believes to be on."""

    pid: int
    root: Path
    client: Client

    def set_online(self, cpus: list[int]) -> None:
        write(self.root, {"sys/devices/system/cpu/online": spelled(cpus)})

    def set_quota(self, text: str) -> None:
        write(self.root, {"sys/fs/cgroup/pool/cpu.max": text})

    def pinned(self) -> list[list[int]]:
        """Where the kernel runs the workers, by pid."""
        found = []
        for pid in workers_of(self.pid):
            try:
                found.append(sorted(os.sched_getaffinity(pid)))
            except ProcessLookupError:
                found.append([])
        return found

    def settled(self, *cores: list[int]) -> None:
        """Waits until just these workers serve, on these cores."""
        workers = len(cores)
        what = f"workers on {cores}"
        wait_until(lambda: sorted(self.pinned()) == sorted(cores) and ready_workers(self.client) == workers, WITHIN_S, what)


@contextmanager
def changing(tmp_path: Path, workers: str = "auto", pin: str = "true") -> Iterator[Changing]:
    root = tmp_path / "machine"
    write(
        root,
        {
            "proc/self/status": f"Cpus_allowed_list:\t{spelled(TWO)}",
            "proc/self/cgroup": "0::/pool",
            "proc/self/mountinfo": "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw",
            "sys/fs/cgroup/pool/cpu.max": "max 100000",
            "sys/devices/system/cpu/online": spelled(TWO),
            "sys/devices/system/cpu/present": spelled(TWO),
        },
    )
    with with_workers(WORKER, tmp_path, SUPERVISOR, str(root), workers, pin) as process:
        endpoint = read_line(process, 30.0).strip()
        with Client(endpoint) as client:
            client.embed(["warm"])
            yield Changing(process.pid, root, client)


def test_a_core_that_goes_takes_its_worker_along_and_one_that_comes_back_gets_one_and_no_request_fails(tmp_path: Path) -> None:
    with changing(tmp_path) as pool:
        pool.settled([TWO[0]], [TWO[1]])
        first = workers_of(pool.pid)[0]
        with Asking(pool.client.endpoint, same_384):
            pool.set_online(TWO[:1])
            pool.settled([TWO[0]])
            assert workers_of(pool.pid) == [first], "the worker whose core is still there was left alone"
            assert "1 more offline" in str(state(pool.client)["pool"])
            pool.set_online(TWO)
            pool.settled([TWO[0]], [TWO[1]])
            assert first in workers_of(pool.pid)
        assert "offline" not in str(state(pool.client)["pool"])
        assert len(children(pool.pid)) == 4, "router, forkserver and two workers, and nobody else"


def test_a_worker_whose_core_is_gone_is_replaced_by_one_on_another_core(tmp_path: Path) -> None:
    with changing(tmp_path, workers="1") as pool:
        pool.settled([TWO[0]])
        with Asking(pool.client.endpoint, same_384, threads=2):
            pool.set_online(TWO[1:])
            pool.settled([TWO[1]])
            pool.set_online(TWO)
            pool.settled([TWO[0]])
        assert all(worker["restarts"] == 0 for worker in state(pool.client)["workers"])  # type: ignore[attr-defined]


def test_a_worker_whose_pin_the_kernel_has_taken_is_replaced_by_one_that_is_pinned(tmp_path: Path) -> None:
    """As after a core that went and came back between two looks, or a cpuset that changed and left the plan as it was."""
    with changing(tmp_path) as pool:
        pool.settled([TWO[0]], [TWO[1]])
        time.sleep(5.0)  # it was seen on its core
        first, second = workers_of(pool.pid)
        with Asking(pool.client.endpoint, same_384, threads=2):
            os.sched_setaffinity(first, MINE)
            pool.settled([TWO[0]], [TWO[1]])
        assert first not in workers_of(pool.pid) and second in workers_of(pool.pid)


def test_a_worker_that_starts_when_its_core_has_just_gone_runs_unpinned_instead_of_never(tmp_path: Path) -> None:
    with changing(tmp_path) as pool:
        pool.settled([TWO[0]], [TWO[1]])
        nowhere = MINE[-1] + 400
        write(pool.root, {"proc/self/status": f"Cpus_allowed_list:\t{TWO[0]},{nowhere}"})
        pool.set_online([TWO[0], nowhere])
        pool.settled([TWO[0]], MINE)
        assert same(pool.client.embed(["still"]), ["still"])


def test_a_quota_that_is_set_and_lifted_changes_the_number_of_workers_though_none_is_pinned(tmp_path: Path) -> None:
    with changing(tmp_path, pin="false") as pool:
        pool.settled(MINE, MINE)
        with Asking(pool.client.endpoint, same_384, threads=2):
            pool.set_quota("150000 100000")
            pool.settled(MINE)
            assert "a quota of 1.5 CPUs" in str(state(pool.client)["pool"])
            pool.set_quota("max 100000")
            pool.settled(MINE, MINE)


def test_a_machine_that_keeps_changing_is_left_to_come_to_rest(tmp_path: Path) -> None:
    with changing(tmp_path) as pool:
        pool.settled([TWO[0]], [TWO[1]])
        before, ends_at = workers_of(pool.pid), time.monotonic() + 9.0
        while time.monotonic() < ends_at:  # never the same at two looks
            pool.set_quota(f"{200_000 + int(time.monotonic() * 10)} 100000")
            pool.set_online(TWO[:1] if int(time.monotonic() / 2) % 2 else TWO)
            time.sleep(0.05)
        pool.set_online(TWO)
        assert workers_of(pool.pid) == before


def test_a_pool_that_is_told_to_stop_while_it_plans_again_stops(tmp_path: Path) -> None:
    with changing(tmp_path) as pool:
        pool.settled([TWO[0]], [TWO[1]])
        pool.set_online(TWO[1:])
        wait_until(lambda: len(workers_of(pool.pid)) != 2 or "offline" in str(state(pool.client)["pool"]), WITHIN_S)
        assert same(pool.client.embed(["still"]), ["still"])
        kill(pool.pid, signal.SIGTERM)
