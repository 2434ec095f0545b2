"""A wrong core plan costs half the throughput and raises nothing, so plans are compared with what was worked out by hand,
for machines built here; and the files of a container are read from a tree in a temporary directory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from embedpool.supervise.cores import Machine, plan, read_machine, read_quota


def _machine(allowed: Iterable[int], pairs: Iterable[tuple[int, ...]] = (), quota: float | None = None) -> Machine:
    """A machine whose CPUs are cores of their own but for those that `pairs` puts together."""
    siblings = {cpu: frozenset({cpu}) for cpu in allowed}
    for pair in pairs:
        siblings |= {cpu: frozenset(pair) for cpu in pair if cpu in siblings}
    return Machine(frozenset(siblings), siblings, quota)


def _virtual() -> Machine:
    return _machine(range(2))


def _smt() -> Machine:
    """Four cores of two threads, numbered as Linux does: 0-3 the first threads, 4-7 the second."""
    return _machine(range(8), [(0, 4), (1, 5), (2, 6), (3, 7)])


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_small_virtual_machine_gets_a_worker_per_cpu() -> None:
    assert plan(_virtual(), 0, 1).workers == ((0,), (1,))


def test_siblings_of_one_core_are_one_worker() -> None:
    made = plan(_smt(), 0, 1)
    assert made.workers == ((0,), (1,), (2,), (3,))
    assert "4 physical cores of 8 allowed CPUs" in made.reason


def test_siblings_that_are_numbered_side_by_side_are_one_worker_too() -> None:
    assert plan(_machine(range(4), [(0, 1), (2, 3)]), 0, 1).workers == ((0,), (2,))


def test_a_core_is_used_by_its_allowed_thread_where_the_other_is_not_ours() -> None:
    assert plan(_machine([1, 4, 6], [(0, 4), (1, 5), (2, 6)]), 0, 1).workers == ((1,), (4,), (6,))


def test_a_quota_bounds_the_number_of_workers() -> None:
    made = plan(_machine(range(8), quota=1.5), 0, 1)
    assert made.workers == ((0,),)
    assert "a quota of 1.5 CPUs" in made.reason


def test_a_quota_of_more_than_the_cores_bounds_nothing() -> None:
    made = plan(_machine(range(2), quota=6.0), 0, 1)
    assert made.workers == ((0,), (1,))
    assert "quota" not in made.reason


def test_a_quota_counts_threads_not_workers() -> None:
    assert plan(_machine(range(8), quota=5.0), 0, 2).workers == ((0, 1), (2, 3))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_quota_below_one_still_gives_one_worker(threads: int) -> None:
    made = plan(_machine(range(4), quota=0.5), 0, threads)
    assert made.workers == (tuple(range(threads)),)
    assert "share cores" not in made.reason


def test_two_threads_per_worker_take_two_cores_each() -> None:
    assert plan(_smt(), 0, 2).workers == ((0, 1), (2, 3))


def test_cores_left_over_by_wide_workers_stay_free() -> None:
    assert plan(_machine(range(5)), 0, 2).workers == ((0, 1), (2, 3))


def test_a_worker_with_more_threads_than_cores_gets_every_core_once() -> None:
    assert plan(_virtual(), 0, 4).workers == ((0, 1),)


def test_more_workers_than_cores_go_round_and_the_reason_says_so() -> None:
    made = plan(_virtual(), 5, 1)
    assert made.workers == ((0,), (1,), (0,), (1,), (0,))
    assert "asked for" in made.reason and "they share cores" in made.reason


def test_more_workers_than_the_quota_are_made_if_asked_for_and_the_reason_says_so() -> None:
    made = plan(_machine(range(4), quota=2.0), 3, 1)
    assert made.workers == ((0,), (1,), (2,))
    assert "they share cores" in made.reason


def test_fewer_workers_than_cores_are_made_if_asked_for() -> None:
    made = plan(_smt(), 2, 1)
    assert made.workers == ((0,), (1,))
    assert "asked for" in made.reason and "share" not in made.reason


def test_only_cpus_of_the_affinity_mask_are_planned() -> None:
    assert plan(_machine([3, 9, 17]), 0, 1).workers == ((3,), (9,), (17,))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_machine_is_read_from_the_affinity_mask_and_the_topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 8, 9})
    topology = "sys/devices/system/cpu/cpu{}/topology/core_cpus_list"
    root = _tree(tmp_path, {topology.format(0): "0,8\n", topology.format(8): "0,8\n", topology.format(1): "1-2,9\n"})
    read = read_machine(root)
    assert read.allowed == {0, 1, 8, 9}
    assert read.siblings == {0: {0, 8}, 8: {0, 8}, 1: {1, 2, 9}, 9: {9}}
    assert read.quota is None


def test_a_quota_of_the_own_group_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    root = _tree(tmp_path, {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "250000 100000\n"})
    assert read_machine(root).quota == 2.5


def test_a_quota_of_an_ancestor_is_found(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/pool.service/inner\n",
        "sys/fs/cgroup/system.slice/cpu.max": "150000 100000\n",
    }
    assert read_quota(_tree(tmp_path, files)) == 1.5


def test_the_least_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/cpu.max": "800000 100000\n",
        "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
    }
    assert read_quota(_tree(tmp_path, files)) == 0.5


@pytest.mark.parametrize("text", ["max 100000\n", "", "unreadable\n", "soon later\n"])
def test_a_group_without_a_limit_that_can_be_read_does_not_hide_its_ancestors(tmp_path: Path, text: str) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/cpu.max": text,
        "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
    }
    assert read_quota(_tree(tmp_path, files)) == 3.0


def test_only_max_everywhere_is_no_quota(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
    assert read_quota(_tree(tmp_path, files)) is None


def test_groups_beside_our_own_path_are_not_looked_at(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/b/cpu.max": "100000 100000\n", "cpu.max": "100000 100000\n"}
    assert read_quota(_tree(tmp_path, files)) is None


@pytest.mark.parametrize("cgroup", [None, "", "12:cpu,cpuacct:/old\n"])
def test_without_a_unified_group_there_is_no_quota(tmp_path: Path, cgroup: str | None) -> None:
    root = _tree(tmp_path, {"sys/fs/cgroup/cpu.max": "100000 100000\n"})
    if cgroup is not None:
        _tree(root, {"proc/self/cgroup": cgroup})
    assert read_quota(root) is None


def test_a_unified_line_among_old_ones_is_found(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "12:cpu:/old\n1:name=systemd:/\n0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}
    assert read_quota(_tree(tmp_path, files)) == 2.0
