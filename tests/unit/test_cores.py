"""A wrong core plan costs half the throughput and raises nothing, so plans are compared with what was worked out by hand: for
machines built here, and for trees of /proc and /sys of whole machines (tests/fixtures/machines).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from rich.console import Console

from embedpool.cli.cores import document, show, spoken
from embedpool.supervise.cores import CorePlan, in_place, plan
from embedpool.supervise.machine import read_machine
from embedpool.supervise.topology import Bounds, Cpu, Machine, Quota, cpus_of, spelled
from tests.fixtures import trees


def _machine(allowed: Iterable[int], pairs: Iterable[tuple[int, ...]] = (), quota: float | None = None) -> Machine:
    """A machine whose CPUs are cores of their own but for those that `pairs` puts together."""
    cores = {cpu: frozenset({cpu}) for cpu in allowed}
    for pair in pairs:
        cores |= {cpu: frozenset(pair) for cpu in pair if cpu in cores}
    cpus = tuple(Cpu(cpu, core, core, core) for cpu, core in sorted(cores.items()))
    limit = Quota(quota, "/") if quota is not None else None
    return Machine(cpus, Bounds(frozenset(cores), frozenset(cores), None, limit))


def _with(machine: Machine, **per_cpu: list[int]) -> Machine:
    """The machine with these capacities or nodes, by CPU."""
    cpus = [replace(cpu, **{name: values[i] for name, values in per_cpu.items()}) for i, cpu in enumerate(machine.cpus)]  # type: ignore[arg-type]
    return replace(machine, cpus=tuple(cpus))


def _virtual() -> Machine:
    return _machine(range(2))


def _smt() -> Machine:
    """Four cores of two threads, numbered as Linux does: 0-3 the first threads, 4-7 the second."""
    return _machine(range(8), [(0, 4), (1, 5), (2, 6), (3, 7)])


@cache
def _read(name: str) -> Machine:
    with TemporaryDirectory() as root:
        return read_machine(trees.planted(name, Path(root)), trees.load(name).get("count", 0))


def _why(made: CorePlan, about: str) -> str:
    return next((choice.why for choice in made.choices if choice.about == about), "")


# ── whole machines ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", trees.names())
def test_a_machine_of_the_collection_gets_the_plan_that_is_written_beside_it(name: str) -> None:
    machine, expected = _read(name), trees.plans(name)
    assert expected
    for each in expected:
        made = plan(machine, each.workers, each.threads)
        assert (made.workers, made.reason) == (each.groups, each.reason)
        used = {cpu for group in made.workers for cpu in group}
        assert set(made.rest) == machine.bounds.usable - used


def test_the_collection_says_of_every_machine_whether_it_was_recorded() -> None:
    rows = [line.split(" | ") for line in (trees.MACHINES / "README.md").read_text().splitlines() if line.startswith("| ")]
    told = {row[0].removeprefix("| "): row[2].removesuffix(" |") for row in rows[1:]}
    assert told == {
        name: next(key for key in ("recorded", "reconstructed") if key in trees.load(name)) for name in trees.names()
    }
    assert len(told) >= 10


def test_a_power_mode_of_a_jetson_takes_workers_away_and_leaves_the_others_where_they_are() -> None:
    before, after = (plan(_read(f"jetson_orin_{mode}"), 0, 1) for mode in ("maxn", "30w"))
    assert in_place(after, before.workers).workers == before.workers[:8]
    assert "CPUs 8-11 are offline" in _why(after, "CPUs")


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_small_virtual_machine_gets_a_worker_per_cpu() -> None:
    assert plan(_virtual(), 0, 1).workers == ((0,), (1,))


def test_siblings_of_one_core_are_one_worker() -> None:
    made = plan(_smt(), 0, 1)
    assert made.workers == ((0,), (1,), (2,), (3,))
    assert made.rest == (4, 5, 6, 7)
    assert "4 physical cores of 8 allowed CPUs" in made.reason


def test_siblings_that_are_numbered_side_by_side_are_one_worker_too() -> None:
    assert plan(_machine(range(4), [(0, 1), (2, 3)]), 0, 1).workers == ((0,), (2,))


def test_a_core_is_used_by_its_allowed_thread_where_the_other_is_not_ours() -> None:
    assert plan(_machine([1, 4, 6], [(0, 4), (1, 5), (2, 6)]), 0, 1).workers == ((1,), (4,), (6,))


def test_a_quota_bounds_the_number_of_workers() -> None:
    made = plan(_machine(range(8), quota=1.5), 0, 1)
    assert made.workers == ((0,),)
    assert "a quota of 1.5 CPUs" in made.reason
    assert "0.5 CPUs remain" in _why(made, "quota")


def test_a_quota_of_more_than_the_cores_bounds_nothing() -> None:
    made = plan(_machine(range(2), quota=6.0), 0, 1)
    assert made.workers == ((0,), (1,))
    assert "quota" not in made.reason


def test_a_quota_counts_threads_not_workers() -> None:
    assert plan(_machine(range(8), quota=5.0), 0, 2).workers == ((0, 1), (2, 3))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_quota_below_one_still_gives_one_worker_and_says_that_it_will_be_stopped(threads: int) -> None:
    made = plan(_machine(range(4), quota=0.5), 0, threads)
    assert made.workers == (tuple(range(threads)),)
    assert "share cores" not in made.reason
    assert "stops all of them" in _why(made, "quota")


def test_two_threads_per_worker_take_two_cores_each() -> None:
    assert plan(_smt(), 0, 2).workers == ((0, 1), (2, 3))


def test_cores_left_over_by_wide_workers_stay_free() -> None:
    made = plan(_machine(range(5)), 0, 2)
    assert made.workers == ((0, 1), (2, 3))
    assert made.rest == (4,)
    assert "1 core of 5 at a time is left over" in _why(made, "threads")


def test_a_worker_with_more_threads_than_cores_gets_every_core_once() -> None:
    made = plan(_virtual(), 0, 4)
    assert made.workers == ((0, 1),)
    assert "only 2 cores for 4 threads" in _why(made, "threads")


def test_more_workers_than_cores_go_round_and_the_reason_says_so() -> None:
    made = plan(_virtual(), 5, 1)
    assert made.workers == ((0,), (1,), (0,), (1,), (0,))
    assert "asked for" in made.reason and "they share cores" in made.reason


def test_more_workers_than_the_quota_are_made_if_asked_for_and_the_reason_says_so() -> None:
    made = plan(_machine(range(4), quota=2.0), 3, 1)
    assert made.workers == ((0,), (1,), (2,))
    assert "throttled" in made.reason and "share cores" not in made.reason


def test_fewer_workers_than_cores_are_made_if_asked_for() -> None:
    made = plan(_smt(), 2, 1)
    assert made.workers == ((0,), (1,))
    assert "asked for" in made.reason and "share" not in made.reason
    assert _why(made, "workers") == "2 workers: asked for (--workers); 4 would fit."


def test_only_cpus_of_the_affinity_mask_are_planned() -> None:
    assert plan(_machine([3, 9, 17]), 0, 1).workers == ((3,), (9,), (17,))


def test_without_pinning_the_number_is_the_same_and_the_reason_says_so() -> None:
    made = plan(_smt(), 0, 1, pin=False)
    assert (len(made.workers), made.pinned) == (4, False)
    assert made.reason.endswith("; not pinned")
    assert "--pin false" in _why(made, "pinning")


@pytest.mark.parametrize(("capacity", "workers"), [(0.6, 4), (0.59, 2)])
def test_cores_below_six_tenths_of_the_fastest_get_no_worker(capacity: float, workers: int) -> None:
    slow = int(1000 * capacity)
    made = plan(_with(_machine(range(4)), capacity=[slow, slow, 1000, 1000]), 0, 1)
    assert made.workers == (((0,), (1,), (2,), (3,)) if workers == 4 else ((2,), (3,)))
    assert bool(_why(made, "slow cores")) == (workers == 2)


def test_slow_cores_are_used_before_any_is_shared_when_more_workers_are_asked_for() -> None:
    little = _with(_machine(range(4)), capacity=[400, 400, 1024, 1024])
    assert plan(little, 3, 1).workers == ((0,), (2,), (3,))
    made = plan(little, 4, 1)
    assert made.workers == ((0,), (1,), (2,), (3,))
    assert "share cores" not in made.reason and "they are used" in _why(made, "slow cores")
    assert "share cores" in plan(little, 5, 1).reason


def test_a_worker_of_several_threads_is_never_given_too_few_slow_cores() -> None:
    little = _with(_machine(range(5)), capacity=[400, 1024, 1024, 1024, 1024])
    made = plan(little, 3, 2)
    assert made.workers == ((1, 2), (3, 4), (1, 2))
    assert "share cores" in made.reason


def test_what_a_slow_core_would_add_and_cost_is_said() -> None:
    made = plan(_with(_machine(range(4)), capacity=[512, 512, 1024, 1024]), 0, 1)
    assert "2.0 times as long" in _why(made, "slow cores") and "at most 50%" in _why(made, "slow cores")


def test_few_workers_are_spread_over_the_nodes_and_many_threads_stay_within_one() -> None:
    two = _with(_machine(range(8)), node=[0, 0, 0, 0, 1, 1, 1, 1])
    assert plan(two, 2, 1).workers == ((0,), (4,))
    assert plan(two, 3, 1).workers == ((0,), (1,), (4,))
    assert plan(two, 0, 3).workers == ((0, 1, 2), (4, 5, 6))
    assert plan(two, 0, 6).workers == ((0, 1, 2, 3, 4, 5),), "no node holds six: then the machine has to"
    assert "2 nodes" in _why(plan(two, 0, 1), "NUMA")


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("workers", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("name", trees.names())
def test_whatever_is_asked_for_every_worker_has_usable_cores_and_none_is_given_twice_without_need(
    name: str, workers: int, threads: int
) -> None:
    machine = _read(name)
    made = plan(machine, workers, threads)
    assert len(made.workers) == (workers or len(made.workers)) > 0
    flat = [cpu for group in made.workers for cpu in group]
    assert set(flat) <= machine.bounds.usable
    assert all(len(group) == len(set(group)) == min(threads, len(made.workers[0])) for group in made.workers)
    assert (len(flat) != len(set(flat))) == ("share cores" in made.reason)


# ── a plan that follows another ──────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_whose_cores_are_in_the_new_plan_keeps_its_place() -> None:
    new = plan(_machine([1, 2, 3]), 0, 1)
    assert in_place(new, ((0,), (1,), (2,), (3,))).workers == ((3,), (1,), (2,))
    assert in_place(new, ()).workers == new.workers
    assert in_place(plan(_machine(range(4)), 0, 1), ((3,),)).workers == ((3,), (0,), (1,), (2,))


def test_workers_that_share_cores_keep_their_places_too() -> None:
    assert in_place(plan(_virtual(), 4, 1), ((1,), (1,), (0,))).workers == ((1,), (1,), (0,), (0,))


# ── what `embedpool cores` shows ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", trees.names())
def test_every_machine_is_shown_in_80_columns_with_every_cpu_and_reason(name: str, threads: int) -> None:
    machine = _read(name)
    made = plan(machine, 0, threads)
    console = Console(width=80, highlight=False, file=StringIO(), record=True)
    show(machine, made, console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert len(shown.splitlines()) <= 45
    for choice in made.choices:
        assert choice.about in shown
    told = document(machine, made)
    assert [tuple(group) for group in told["workers"]] == list(made.workers)
    assert {cpu["cpu"] for cpu in told["cpus"]} == machine.bounds.usable
    assert json.loads(json.dumps(told)) == told


def test_workers_are_named_by_their_cpus_in_a_line() -> None:
    assert spoken(plan(_machine(range(4)), 0, 1)) == "4, on 1 CPU each: 0-3"
    assert spoken(plan(_machine(range(4)), 0, 2)) == "2, on 2 CPUs each: 0-1 | 2-3"
    assert spoken(plan(_machine(range(2)), 3, 1)) == "3, on 1 CPU each: 0 | 1 | 0"
    assert spoken(plan(_machine(range(64)), 0, 2)) == "32, on 2 CPUs each: 0-63"
    assert spoken(plan(_machine(range(4)), 0, 1, pin=False)) == "4, on any CPU"


# ── lists ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,8", "1,3,5-6,64-127"])
def test_a_list_of_cpus_is_spelled_as_it_is_read(text: str) -> None:
    assert spelled(cpus_of(text + "\n")) == text


def test_no_cpus_are_none() -> None:
    assert cpus_of("\n") == frozenset()
    assert spelled(()) == "none"
