"""What of /proc and /sys a machine is read from: each file missing, in its older form, or of the other version of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedpool.supervise.cgroups import read_cpuset, read_quota, throttled
from embedpool.supervise.machine import read_bounds, read_machine
from embedpool.supervise.topology import Quota
from tests.fixtures import trees
from tests.fixtures.trees import write

CPU = "sys/devices/system/cpu"
V2 = {"proc/self/mountinfo": "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw"}
BOTH = {
    "proc/self/mountinfo": "33 32 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 32 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "35 32 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
}


def _allowed(cpus: str) -> dict[str, str]:
    return {"proc/self/status": f"Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t0"}


# ── what may be used ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_may_be_used_is_online_in_the_mask_and_in_the_cpuset(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpuset.cpus.effective": "0-4"}
    root = write(tmp_path, {**V2, **files, **_allowed("1-6"), f"{CPU}/online": "0-3,5-7"})
    assert read_bounds(root).usable == {1, 2, 3}


def test_a_mask_whose_cpus_are_all_offline_is_where_the_kernel_has_to_run_us(tmp_path: Path) -> None:
    root = write(tmp_path, {**_allowed("4-5"), f"{CPU}/online": "0-3", f"{CPU}/present": "0-5"})
    machine = read_machine(root)
    assert [cpu.number for cpu in machine.cpus] == [0, 1, 2, 3]
    assert machine.offline == {4, 5}


def test_without_any_file_there_are_as_many_cpus_as_python_counts_and_none_can_be_pinned_to(tmp_path: Path) -> None:
    machine = read_machine(tmp_path, 10)
    assert [cpu.number for cpu in machine.cpus] == list(range(10))
    assert not machine.can_pin
    assert len(read_machine(tmp_path).cpus) >= 1


def test_bounds_that_have_not_changed_are_equal_and_others_are_not(tmp_path: Path) -> None:
    root = write(tmp_path, {**_allowed("0-3"), f"{CPU}/online": "0-3"})
    first = read_bounds(root)
    assert read_bounds(root) == first
    write(root, {f"{CPU}/online": "0-1"})
    assert read_bounds(root) != first


# ── power ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "mode"), [("jetson_orin_maxn", "MAXN"), ("jetson_orin_30w", "MODE_30W"), ("raspberry_pi_5", "")]
)
def test_a_jetson_says_its_power_mode_and_other_boards_have_none(tmp_path: Path, name: str, mode: str) -> None:
    assert read_machine(trees.planted(name, tmp_path)).power_mode == mode


@pytest.mark.parametrize(("status", "mode"), [("pmode:0012", "12"), ("fmode:cool pmode:0003", "3"), ("pmode:", ""), ("", "")])
def test_a_power_mode_that_nothing_names_is_its_number(tmp_path: Path, status: str, mode: str) -> None:
    root = write(tmp_path, {"var/lib/nvpmodel/status": status, "etc/nvpmodel.conf": "< POWER_MODEL ID=1 NAME=A >"})
    assert read_machine(root, 1).power_mode == mode


# ── topology ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_siblings_of_a_core_are_found_under_their_new_name_and_their_old_one(tmp_path: Path) -> None:
    of = {f"{CPU}/cpu0/topology/core_cpus_list": "0,2", f"{CPU}/cpu1/topology/thread_siblings_list": "1,3"}
    machine = read_machine(write(tmp_path, {**of, **_allowed("0-3")}))
    assert [sorted(cpu.core) for cpu in machine.cpus] == [[0, 2], [1, 3], [2], [3]]


def test_a_cluster_is_at_least_a_core(tmp_path: Path) -> None:
    of = {f"{CPU}/cpu0/topology/core_cpus_list": "0-1", f"{CPU}/cpu0/topology/cluster_cpus_list": "0"}
    assert read_machine(write(tmp_path, {**of, **_allowed("0")})).cpus[0].cluster == {0, 1}


def test_the_last_level_cache_is_that_of_the_highest_level_whatever_its_index(tmp_path: Path) -> None:
    levels = {"0": ("1", "0"), "1": ("3", "0-3"), "2": ("2", "0-1"), "10": ("1", "0")}
    of = {f"{CPU}/cpu0/cache/index{i}/level": level for i, (level, _) in levels.items()}
    of |= {f"{CPU}/cpu0/cache/index{i}/shared_cpu_list": shared for i, (_, shared) in levels.items()}
    assert read_machine(write(tmp_path, {**of, **_allowed("0-3")})).cpus[0].cache == {0, 1, 2, 3}


def test_a_cpu_that_several_nodes_list_is_of_the_first_since_the_others_are_emulated(tmp_path: Path) -> None:
    of = {f"sys/devices/system/node/node{n}/cpulist": "0-3" for n in (0, 1, 10)} | {
        "sys/devices/system/node/node2/cpulist": "4"
    }
    machine = read_machine(write(tmp_path, {**of, **_allowed("0-4")}))
    assert [cpu.node for cpu in machine.cpus] == [0, 0, 0, 0, 2]


def test_capacities_are_read_where_all_have_one_and_come_from_frequencies_where_not(tmp_path: Path) -> None:
    speeds = {f"{CPU}/cpu{i}/cpufreq/cpuinfo_max_freq": speed for i, speed in enumerate(["1500000", "3000000"])}
    root = write(tmp_path, {**speeds, **_allowed("0-1"), f"{CPU}/cpu0/cpu_capacity": "300"})
    assert [cpu.capacity for cpu in read_machine(root).cpus] == [512, 1024]
    write(root, {f"{CPU}/cpu1/cpu_capacity": "1024"})
    assert [cpu.capacity for cpu in read_machine(root).cpus] == [300, 1024]


def test_atom_cores_beside_core_ones_count_half_their_frequency(tmp_path: Path) -> None:
    speeds = {f"{CPU}/cpu{i}/cpufreq/cpuinfo_max_freq": speed for i, speed in enumerate(["4000000", "5000000"])}
    root = write(tmp_path, {**speeds, **_allowed("0-1"), "sys/devices/cpu_atom/cpus": "0"})
    assert [cpu.capacity for cpu in read_machine(root).cpus] == [410, 1024]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/device-tree/model": "A Board\0", "proc/cpuinfo": "model name : x"}, "A Board"),
        ({"proc/cpuinfo": "processor : 0\nmodel name\t: A: Processor"}, "A: Processor"),
        ({"proc/cpuinfo": "processor : 0", "sys/class/dmi/id/product_name": "A Server"}, "A Server"),
        ({}, ""),
    ],
)
def test_a_machine_is_called_by_the_first_name_that_is_told(files: dict[str, str], name: str, tmp_path: Path) -> None:
    assert read_machine(write(tmp_path, {**files, **_allowed("0")})).name == name


# ── quotas ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quota_of_an_ancestor_is_found_and_named(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/system.slice/pool.service/inner",
        "sys/fs/cgroup/system.slice/cpu.max": "150000 100000",
    }
    assert read_quota(write(tmp_path, V2 | files)) == Quota(1.5, "/system.slice")


def test_the_least_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/cpu.max": "800000 100000",
        "sys/fs/cgroup/a/cpu.max": "50000 100000",
        "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
    }
    assert read_quota(write(tmp_path, V2 | files)) == Quota(0.5, "/a")


@pytest.mark.parametrize("text", ["max 100000", "", "unreadable", "soon later", "100000 0", "-1 100000"])
def test_a_group_without_a_limit_that_can_be_read_does_not_hide_its_ancestors(tmp_path: Path, text: str) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/a/b/cpu.max": text,
        "sys/fs/cgroup/a/cpu.max": "300000 100000",
    }
    assert read_quota(write(tmp_path, V2 | files)) == Quota(3.0, "/a")


def test_only_max_everywhere_is_no_quota(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpu.max": "max 100000", "sys/fs/cgroup/cpu.max": "max 100000"}
    assert read_quota(write(tmp_path, V2 | files)) is None


def test_groups_beside_our_own_path_are_not_looked_at(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a", "sys/fs/cgroup/b/cpu.max": "100000 100000", "cpu.max": "100000 100000"}
    assert read_quota(write(tmp_path, V2 | files)) is None


@pytest.mark.parametrize("cgroup", [None, "", "12:memory:/old"])
def test_without_a_group_there_is_no_quota(tmp_path: Path, cgroup: str | None) -> None:
    root = write(tmp_path, {**V2, "sys/fs/cgroup/cpu.max": "100000 100000"})
    if cgroup is not None:
        write(root, {"proc/self/cgroup": cgroup})
    assert read_quota(root) is None


def test_a_quota_of_version_1_is_found_at_its_controllers_mount_and_in_its_ancestors(tmp_path: Path) -> None:
    of = "sys/fs/cgroup/cpu,cpuacct/docker"
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/elsewhere\n0::/system.slice/docker.service",
        f"{of}/cpu.cfs_quota_us": "250000",
        f"{of}/cpu.cfs_period_us": "100000",
        f"{of}/abc/cpu.cfs_quota_us": "-1",
        f"{of}/abc/cpu.cfs_period_us": "100000",
    }
    assert read_quota(write(tmp_path, BOTH | files)) == Quota(2.5, "/docker")


def test_the_tighter_of_both_versions_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/a\n0::/b",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "200000",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/unified/b/cpu.max": "100000 100000",
    }
    assert read_quota(write(tmp_path, BOTH | files)) == Quota(1.0, "/b")


def test_a_mount_that_shows_only_the_containers_part_is_joined_with_the_path_from_the_host(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": "9 8 0:30 /docker/abc /sys/fs/cgroup/cpu ro master:3 - cgroup cgroup rw,cpu",
        "proc/self/cgroup": "4:cpu:/docker/abc/inner",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us": "-1",
    }
    assert read_quota(write(tmp_path, files)) == Quota(1.5, "/docker/abc")


def test_a_path_outside_of_what_is_mounted_is_taken_for_the_mounts_root(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": "9 8 0:30 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw",
        "proc/self/cgroup": "0::/docker/abcdef",
        "sys/fs/cgroup/cpu.max": "100000 50000",
        "sys/fs/cgroup/def/cpu.max": "1000 50000",
    }
    assert read_quota(write(tmp_path, files)) == Quota(2.0, "/docker/abc")


def test_another_process_has_a_group_and_a_mask_of_its_own(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/shell",
        "proc/7/cgroup": "0::/pool",
        "proc/7/status": "Cpus_allowed_list: 2-3",
        "sys/fs/cgroup/pool/cpu.max": "100000 100000",
    }
    bounds = read_bounds(write(tmp_path, V2 | files | _allowed("0-3")), process="7")
    assert (bounds.affinity, bounds.quota) == ({2, 3}, Quota(1.0, "/pool"))


# ── cpusets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cpuset_is_what_the_group_and_all_above_it_allow(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/cpuset.cpus.effective": "0-7",
        "sys/fs/cgroup/a/cpuset.cpus.effective": "2-5",
    }
    assert read_cpuset(write(tmp_path, V2 | files)) == {2, 3, 4, 5}


def test_a_cpuset_of_version_1_is_read_with_or_without_its_effective_form(tmp_path: Path) -> None:
    of = "sys/fs/cgroup/cpuset"
    files = {"proc/self/cgroup": "7:cpuset:/a\n0::/", f"{of}/cpuset.cpus": "0-7", f"{of}/a/cpuset.cpus": "4-9"}
    root = write(tmp_path, BOTH | files)
    assert read_cpuset(root) == {4, 5, 6, 7}
    write(root, {f"{of}/a/cpuset.effective_cpus": "6"})
    assert read_cpuset(root) == {6}


def test_a_cpuset_that_says_nothing_restricts_nothing(tmp_path: Path) -> None:
    assert read_cpuset(write(tmp_path, {**V2, "proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/cpuset.cpus": ""})) is None


# ── throttling ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_how_often_a_limit_stopped_the_group_is_the_worst_of_the_way_up(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a",
        "sys/fs/cgroup/a/cpu.stat": "usage_usec 5\nnr_periods 200\nnr_throttled 50",
        "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 0\nnr_throttled 0",
    }
    assert throttled(write(tmp_path, V2 | files)) == 0.25
    assert throttled(tmp_path / "nothing") == 0.0
