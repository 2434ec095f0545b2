"""Each verdict of the doctor, on facts of machines that nobody needs to have, and how its facts are read from files."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from embedpool import __version__
from embedpool.cli import doctor
from embedpool.cli.main import main
from embedpool.config import Config
from embedpool.doctor.checks import checks
from embedpool.doctor.facts import Check, Directory, Facts, Frequency, Left, Neighbours, Pool, Runtime
from embedpool.doctor.read import (
    Ticks,
    chosen,
    descriptors,
    directory,
    existing,
    frequency,
    holder,
    left,
    pressure,
    processes_free,
    ticks,
)
from embedpool.supervise.cores import plan
from embedpool.supervise.topology import Bounds, Cpu, Machine, Quota
from tests.fixtures.trees import write

GB = 1_000_000_000
FREQUENCY = Frequency(("performance",), "acpi-cpufreq", "", 800_000, 2_000_000, 2_000_000)
POOL = Pool(1.2, "serving", "", __version__, 4, 4, 0, "", 0, ())


def _machine(cpus: int, quota: float | None = None, pins: bool = True) -> Machine:
    numbers = frozenset(range(cpus))
    made = tuple(Cpu(cpu, frozenset({cpu}), frozenset({cpu}), frozenset({cpu})) for cpu in numbers)
    limit = Quota(quota, "/pod") if quota is not None else None
    return Machine(made, Bounds(numbers, numbers if pins else None, None, limit))


def _facts(quota: float | None = None, pins: bool = True, settings: dict[str, Any] | None = None, **changes: Any) -> Facts:
    """A machine of four cores on which all is well, but for the changes."""
    config = Config(**{"runtime_dir": "/run/embedpool", "cache": "/var/cache/embedpool", **(settings or {})})
    machine = _machine(4, quota, pins)
    well = Facts(
        config=config,
        machine=machine,
        plan=plan(machine, config.workers, config.threads_per_worker, config.pin),
        throttled=0.0,
        frequency=None,
        neighbours=Neighbours(0.1, 0.0, 1.0, 0.3),
        huge_pages="madvise",
        descriptors=1 << 16,
        processes_free=None,
        clock="tsc",
        clock_ns=50.0,
        kernel={"pidfd_open": "", "flock": "", "sched_setaffinity": ""},
        arch="x86_64",
        features=("avx2", "avx512_vnni"),
        runtime=Runtime("1.32.0", "build type=Release", "CPUExecutionProvider", ("onnxruntime",)),
        runtime_dir=Directory("/run/embedpool", True, "", True, 8 * GB),
        cache=Directory("/var/cache/embedpool", True, "", False, 100 * GB),
        sockets=("/run/embedpool/embedpool.sock",),
        segment_bytes=16 << 20,
        left=Left(False, 0, False, 0),
        pool=None,
    )
    return replace(well, **changes)


def _check(name: str, facts: Facts) -> Check:
    return next(check for check in checks(facts) if check.name == name)


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_where_all_is_well_nothing_costs_anything() -> None:
    for facts in (_facts(), _facts(frequency=FREQUENCY), _facts(pool=POOL, left=Left(True, 7, True, 3)), _facts(quota=4.0)):
        assert [check for check in checks(facts) if check.verdict != "ok" or check.costs or check.mend] == []


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    ("cores", "warn", {"settings": {"workers": 6}}, "share cores"),
    ("cores", "warn", {"pins": False}, "may run"),
    ("cgroup quota", "warn", {"quota": 0.5}, "0.5 CPUs, of /pod"),
    ("cgroup quota", "warn", {"quota": 2.5, "settings": {"workers": 3}}, "2.5 CPUs"),
    ("cgroup quota", "warn", {"quota": 4.0, "throttled": 0.2}, "in 20% of all periods"),
    ("CPU frequency", "warn", {"frequency": replace(FREQUENCY, governors=("powersave",))}, "powersave"),
    ("CPU frequency", "warn", {"frequency": replace(FREQUENCY, allowed_khz=1_200_000)}, "up to 1.20 of 2.00 GHz"),
    ("CPU frequency", "warn", {"frequency": replace(FREQUENCY, preference="power")}, "save power"),
    ("neighbours", "warn", {"neighbours": Neighbours(1.5, 0.0, 1.0, 0.3)}, "1.5 of 4 CPUs"),
    ("neighbours", "warn", {"neighbours": Neighbours(0.0, 0.0, 60.0, 0.3)}, "60 %"),
    ("neighbours", "warn", {"neighbours": Neighbours(0.0, 0.2, None, 0.3)}, "gave 20%"),
    ("clock", "warn", {"clock": "hpet", "clock_ns": 1400.0}, "1400 ns"),
    ("clock", "warn", {"clock": "xen", "clock_ns": 900.0}, "xen"),
    ("kernel", "bad", {"kernel": {"pidfd_open": "Function not implemented", "flock": ""}}, "Function not implemented"),
    ("kernel", "warn", {"kernel": {"sched_setaffinity": "Operation not permitted"}}, "not permitted"),
    ("ONNX Runtime", "bad", {"runtime": Runtime("", "", "", (), "exit status -4")}, "exit status -4"),
    ("ONNX Runtime", "warn", {"runtime": Runtime("1", "", "", ("onnxruntime", "onnxruntime-gpu"))}, "onnxruntime-gpu"),
    ("ONNX Runtime", "warn", {"runtime": Runtime("1", "x, build type=Debug", "", ("onnxruntime",))}, "debug"),
    ("CPU features", "warn", {"features": ("sse4_1", "avx")}, "x86_64"),
    ("CPU features", "warn", {"features": ("avx2",), "settings": {"precision": "q8"}}, "avx2"),
    ("CPU features", "warn", {"arch": "aarch64", "features": ("asimd",), "settings": {"precision": "q8"}}, "aarch64"),
    ("shared memory", "warn", {"runtime_dir": Directory("/a", True, "", False, 8 * GB)}, "no tmpfs"),
    ("shared memory", "bad", {"runtime_dir": Directory("/a", True, "", True, 8_000_000)}, "8 MB in /a"),
    ("shared memory", "warn", {"runtime_dir": Directory("/a", True, "", True, 64 << 20)}, "67 MB in /a"),
    ("descriptors", "bad", {"descriptors": 64}, "64 may be open"),
    ("descriptors", "warn", {"descriptors": 512}, "512 may be open"),
    ("processes", "bad", {"processes_free": 20}, "20 more"),
    (
        "runtime directory",
        "bad",
        {"runtime_dir": Directory("/a", False, "/ cannot be written", True, 8 * GB)},
        "cannot be written",
    ),
    ("socket path", "bad", {"sockets": ("/run/a.sock", "/run/" + "ü" * 60)}, "125 of 107"),
    ("cache", "bad", {"cache": Directory("/c", True, "/c cannot be written by user 7", False, 9 * GB)}, "user 7"),
    ("disk of the cache", "bad", {"cache": Directory("/c", True, "", False, 1_000_000)}, "1 MB"),
    ("disk of the cache", "warn", {"cache": Directory("/c", True, "", False, GB)}, "1.0 GB"),
    ("lock and socket", "bad", {"left": Left(True, 4711, True, 0)}, "4711"),
    ("lock and socket", "warn", {"left": Left(True, 0, True, 3)}, "3 segments"),
    ("pool", "bad", {"pool": replace(POOL, state="failed", ready=0, reason="exit status 9")}, "exit status 9"),
    ("pool", "bad", {"pool": replace(POOL, ready=0)}, "0 of 4"),
    ("pool", "bad", {"pool": replace(POOL, talking=(3, 4))}, "telemetry"),
    ("pool", "warn", {"pool": replace(POOL, version="0.0.1")}, "0.0.1"),
    ("pool", "warn", {"pool": replace(POOL, restarts=2)}, "2 times"),
    ("pool", "warn", {"pool": replace(POOL, reload="no such file")}, "no such file"),
    ("pool", "warn", {"pool": replace(POOL, workers=2, ready=2)}, "plan for these settings has 4"),
]


@pytest.mark.parametrize(("name", "verdict", "changes", "found"), WRONG, ids=[f"{row[0]}: {row[3]}" for row in WRONG])
def test_what_is_wrong_is_found_and_said_with_what_it_costs_and_how_to_mend_it(
    name: str, verdict: str, changes: dict[str, Any], found: str
) -> None:
    check = _check(name, _facts(**changes))
    assert check.verdict == verdict
    assert found in check.found
    assert check.costs and check.mend


def test_every_check_can_be_wrong_but_the_one_that_says_that_nothing_matters() -> None:
    assert {row[0] for row in WRONG} == {check.name for check in checks(_facts())} - {"huge pages"}


def test_every_check_is_explained_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs/cores.md").read_text()
    assert [check.name for check in checks(_facts()) if f"| {check.name} |" not in guide] == []


def test_powersave_is_no_fault_of_a_driver_that_chooses_the_frequency_by_itself() -> None:
    frequency = replace(FREQUENCY, governors=("powersave",), driver="intel_pstate", preference="balance_performance")
    assert _check("CPU frequency", _facts(frequency=frequency)).verdict == "ok"


def test_how_much_slower_a_processor_is_kept_is_said() -> None:
    assert "2.5 times as slow" in _check("CPU frequency", _facts(frequency=replace(FREQUENCY, governors=("powersave",)))).costs
    assert "1.7 times as slow" in _check("CPU frequency", _facts(frequency=replace(FREQUENCY, allowed_khz=1_200_000))).costs


def test_a_pool_that_works_is_not_its_own_neighbour() -> None:
    busy = Neighbours(0.2, 0.0, 80.0, 4.2)
    assert _check("neighbours", _facts(neighbours=busy)).verdict == "warn"
    assert _check("neighbours", _facts(neighbours=busy, pool=POOL)).verdict == "ok"


def test_what_a_pool_has_already_is_not_missing() -> None:
    full = Directory("/run/embedpool", True, "it belongs to user 7, and this is user 0", True, 1_000_000)
    facts = _facts(runtime_dir=full, pool=replace(POOL, segment_bytes=2 * GB), left=Left(True, 7, True, 9))
    assert _check("shared memory", facts).verdict == "ok"
    assert _check("runtime directory", facts).verdict == "ok"
    assert _check("lock and socket", facts).verdict == "ok"


@pytest.mark.parametrize(
    ("arch", "features", "word"),
    [
        ("x86_64", ("avx2", "avx_vnni"), "--precision q8 is faster"),
        ("x86_64", ("avx2", "avx512f"), "--precision fp32 is the one"),
        ("aarch64", ("asimd", "asimddp"), "--precision q8 is faster"),
        ("aarch64", ("asimd",), "--precision fp32 is the one"),
    ],
)
def test_the_precision_that_the_processor_favours_is_said(arch: str, features: tuple[str, ...], word: str) -> None:
    check = _check("CPU features", _facts(arch=arch, features=features))
    assert (check.verdict, word in check.found) == ("ok", True)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "worst", "status"),
    [({}, "ok", 0), ({"descriptors": 512}, "warn", 0), ({"descriptors": 64, "clock": "hpet"}, "bad", 1)],
)
def test_the_exit_status_is_1_only_where_something_is_broken(
    changes: dict[str, Any], worst: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "read_facts", lambda _: _facts(**changes))
    assert main(["doctor", "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == worst
    assert {"name", "verdict", "found", "costs", "mend"} == set(told["checks"][0])


def test_the_table_fits_into_80_columns_and_names_cost_and_cure() -> None:
    found = checks(_facts(descriptors=64, neighbours=Neighbours(3.0, 0.0, 99.0, 9.0)))
    console = Console(width=80, record=True, file=StringIO())
    doctor.show(found, console)
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("costs") == shown.count("mend") == 2
    assert "1 to look at, 1 broken" in shown


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_ticks_of_all_processors_are_told_apart() -> None:
    assert ticks("cpu  100 20 30 1000 50 1 2 7 60 10") == Ticks(busy=153, steal=7, total=1210)
    assert ticks("cpu  100 20 30 1000") == Ticks(busy=150, steal=0, total=1150)


def test_the_last_minutes_pressure_is_read_where_there_is_any() -> None:
    assert pressure("some avg10=1.00 avg60=12.50 avg300=3.00 total=9\nfull avg10=0.00 avg60=4.00 total=0\n") == 12.5
    assert pressure("") is None


def test_the_descriptors_of_a_process_are_its_soft_limit_and_else_our_own() -> None:
    limits = "Limit            Soft Limit   Hard Limit   Units\nMax open files   1024         4096         files\n"
    assert descriptors(limits) == 1024
    assert descriptors("") == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_the_chosen_word_of_a_line_is_that_in_brackets() -> None:
    assert chosen("always [madvise] never") == "madvise"
    assert chosen("") == ""


def test_the_holder_of_a_lock_is_found_by_its_inode() -> None:
    kinds = ("POSIX  ADVISORY  WRITE 5 fe:00:42", "FLOCK  ADVISORY  WRITE 77 00:1b:42", "FLOCK  ADVISORY  READ 8 00:1b:43")
    locks = "".join(f"{n}: {kind} 0 EOF\n" for n, kind in enumerate(kinds, 1))
    assert (holder(locks, 42), holder(locks, 4), holder(locks, 43), holder("", 42)) == (77, 0, 0, 0)


def test_what_a_killed_pool_left_is_counted(tmp_path: Path) -> None:
    write(tmp_path, {"lock": "process 5", "segments/a": "", "segments/b": ""})
    assert left(tmp_path, "") == Left(True, 0, False, 2)
    inode = (tmp_path / "lock").stat().st_ino
    assert left(tmp_path, f"9: FLOCK  ADVISORY  WRITE 5 00:1b:{inode} 0 EOF\n").holder == 5
    assert left(tmp_path / "nowhere", "") == Left(False, 0, False, 0)


def test_a_directory_that_is_not_there_yet_is_judged_by_the_one_above_it(tmp_path: Path) -> None:
    found = directory(tmp_path / "a/b", private=True)
    assert (found.exists, found.problem, existing(tmp_path / "a/b")) == (False, "", tmp_path)
    assert found.free_bytes > 0


def test_a_runtime_directory_that_others_can_write_in_is_refused_and_a_cache_is_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert directory(tmp_path, private=True).problem == "others can write in it"
    assert directory(tmp_path, private=False).problem == ""
    (tmp_path / "file").touch()
    assert "no directory" in directory(tmp_path / "file/below", private=True).problem


def test_frequencies_are_those_of_the_usable_cpus(tmp_path: Path) -> None:
    files = {}
    for cpu, (governor, most) in enumerate([("performance", 2_000_000), ("powersave", 1_500_000), ("ondemand", 9_000_000)]):
        of = f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        files |= {f"{of}/scaling_governor": governor, f"{of}/scaling_driver": "cppc", f"{of}/scaling_min_freq": "100000"}
        files |= {f"{of}/scaling_max_freq": str(most), f"{of}/cpuinfo_max_freq": "2000000"}
    root = write(tmp_path, files)
    assert frequency(root, [0, 1]) == Frequency(("performance", "powersave"), "cppc", "", 100_000, 1_500_000, 2_000_000)
    assert frequency(tmp_path / "nothing", [0, 1]) is None


def test_the_processes_that_cgroups_still_allow_are_the_least_of_the_way_up(tmp_path: Path) -> None:
    files = {
        "proc/self/mountinfo": "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw",
        "proc/self/cgroup": "0::/a/b",
        "sys/fs/cgroup/a/pids.max": "100",
        "sys/fs/cgroup/a/pids.current": "40",
        "sys/fs/cgroup/a/b/pids.max": "max",
        "sys/fs/cgroup/a/b/pids.current": "3",
    }
    assert processes_free(write(tmp_path, files)) == 60
    assert processes_free(tmp_path / "nothing") is None
