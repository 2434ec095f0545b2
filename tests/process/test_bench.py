"""`embedpool bench` against real pools: every workload leaves a result that can be true, and a stall is not hidden."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from embedpool import Client
from embedpool.bench.results import Report, read
from embedpool.cli.main import main
from tests.support import COMMAND, launch, router_of, serving, wait_until


def bench(*arguments: object, within_s: float = 110.0) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file of texts: read at once, where docstrings take seconds."""
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"line number {i} of a file of texts\n" for i in range(2000)))
    return path


def size_of_png(path: Path) -> tuple[int, int]:
    """Width and height, from the header (PNG, 11.2.2: IHDR)."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def measured(tmp_path: Path, *arguments: object, status: int = 0) -> Report:
    """A benchmark's file; its picture is checked to be one."""
    done = bench(*arguments, "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert done.returncode == status, done.stderr
    assert done.stderr == ""
    width, height = size_of_png(tmp_path / "a.png")
    assert width > 1000 and height > 600 and (tmp_path / "a.png").stat().st_size > 20_000
    return read(str(tmp_path / "a.json"))


def check_processes(report: Report) -> None:
    for point in report.points:
        for run in point.runs:
            parts = {part.role: part for part in run.usage.parts}
            assert {"supervisor", "router", "workers", "forkserver"} <= set(parts)
            assert parts["workers"].processes == 2
            assert all((part.pss_bytes or 0) > 1_000_000 for part in parts.values())
            assert sum(part.cores or 0.0 for part in parts.values()) > 0
            assert run.usage.other_requests is not None and run.usage.other_requests < 50
            assert run.usage.alike == 0


def test_queries_at_two_rates(tmp_path: Path) -> None:
    with serving() as server:
        arguments = ("--rates", "40,80", "--seconds", 1, "--warmup", 0.3, "--repeats", 2)
        report = measured(tmp_path, "query", "--endpoint", server.endpoint, *arguments)
    assert [point.rate for point in report.points] == [40, 80]
    assert report.pool.fingerprint == "echo-384-1"
    assert report.machine.packages["embedpool"]
    check_processes(report)
    for point in report.points:
        assert point.rate is not None and len(point.runs) == 2
        for run in point.runs:
            assert run.queries is not None and run.bulk is None
            latency, stages = run.queries.latency, {stage.name: stage.mean_ms for stage in run.queries.stages}
            assert latency.failed == {}
            assert abs(latency.answered - point.rate) < 5 * point.rate**0.5  # a Poisson process's own spread
            assert 0 < (latency.percentiles_ms["p50"] or 0) <= (latency.percentiles_ms["max"] or 0) < 5000
            assert sum(stages.values()) == pytest.approx(latency.mean_ms, rel=0.25, abs=0.3)
            assert 0 < stages["run"] < 100 and stages["deliver"] > 0
            assert sum(piece.answered for piece in run.timeline) == latency.answered


def test_bulk_work(tmp_path: Path, lines: Path) -> None:
    with serving() as server:
        arguments = ("--seconds", 1, "--warmup", 0.3, "--repeats", 1, "--rows", 32, "--clients", 2, "--lengths", lines)
        report = measured(tmp_path, "bulk", "--endpoint", server.endpoint, *arguments)
    check_processes(report)
    (run,) = report.points[0].runs
    assert run.queries is None and run.bulk is not None
    assert run.bulk.texts_per_s > 100
    assert run.bulk.tokens_per_s > 10 * run.bulk.texts_per_s
    # What both clients had open counts as a whole in one number, by its part in the other.
    assert abs(run.bulk.latency.answered * 32 - run.bulk.texts_per_s) <= 4 * 32


def test_queries_beside_bulk_work_with_a_pool_of_its_own(tmp_path: Path, lines: Path) -> None:
    arguments = ("--rate", 50, "--seconds", 1, "--warmup", 0.3, "--repeats", 1, "--lengths", lines, "--arrivals", "fixed")
    report = measured(tmp_path, "mixed", "--model", "echo", "--workers", 2, *arguments)
    check_processes(report)
    (run,) = report.points[0].runs
    assert run.queries is not None and run.bulk is not None
    assert run.queries.latency.answered == 50
    share = report.points[0].numbers["bulk_share_percent"].median
    assert share is not None and 50 < share < 100
    assert "lines of texts.txt" in report.settings.texts


def test_a_pool_that_stands_still_for_a_while_is_seen_in_the_percentiles(tmp_path: Path, lines: Path) -> None:
    with serving() as server, Client(server.endpoint, segment_bytes=0) as client:
        router, result = router_of(server.pid), tmp_path / "a.json"
        load = ("--rate", "100", "--arrivals", "fixed", "--lengths", str(lines))
        arguments = (*load, "--seconds", "3", "--warmup", "0.2", "--repeats", "1")
        process = launch(["bench", "query", "--endpoint", server.endpoint, *arguments, "--json", str(result)])
        try:
            in_the_middle = 20 + 50  # those of the warm-up, and some of what is measured
            wait_until(
                lambda: json.loads(client.status())["counters"]["answered"] > in_the_middle, 60.0, "queries to be answered"
            )
            os.kill(router, signal.SIGSTOP)
            time.sleep(1.0)
            os.kill(router, signal.SIGCONT)
            said = process.communicate(timeout=60)
            assert process.returncode == 0, said
        finally:
            process.kill()
            process.wait()
        (run,) = read(str(result)).points[0].runs
    assert run.queries is not None
    latency = run.queries.latency
    assert latency.answered == 300
    assert latency.percentiles_ms["max"] is not None and latency.percentiles_ms["max"] > 900
    # A third of the queries were due while it stood still. A load that waits for answers would have had one slow one.
    assert latency.percentiles_ms["p95"] is not None and latency.percentiles_ms["p95"] > 700
    slow = [piece.at_s for piece in run.timeline if (piece.max_ms or 0) > 500]
    assert slow and max(slow) - min(slow) < 1.5


def _command_lines(pid: int) -> str:
    """Of the process's children."""
    found = ""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            found += Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


# ── the search ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_highest_rate_within_an_objective_is_found_in_bounded_time(tmp_path: Path, lines: Path) -> None:
    began = time.monotonic()
    time_taken = ("--seconds", 0.5, "--warmup", 0.1, "--repeats", 1)
    # One connection, and so one process, which is at its end before the pool is.
    arguments = ("--slo", "p95=100ms", "--rate", 2000, "--clients", 1, "--lengths", lines, *time_taken)
    report = measured(tmp_path, "query", "--model", "echo", "--workers", 2, *arguments)
    assert time.monotonic() - began < 100
    found = report.objective
    assert found is not None and found.rate is not None
    assert report.chosen.rate == found.rate
    p95 = report.chosen.numbers["p95_ms"].median
    assert p95 is not None and p95 <= 100
    above = [tried for tried in found.tried if tried.rate > found.rate]
    assert above and above[0].rate <= found.rate * 1.06 and "met" not in above[0].verdicts


def test_an_objective_that_cannot_be_met_ends_soon_with_status_1(tmp_path: Path, lines: Path) -> None:
    with serving() as server:
        time_taken = ("--seconds", 0.5, "--warmup", 0.1, "--repeats", 1)
        arguments = ("--slo", "p50=0.001ms", "--rate", 40, "--lengths", lines, *time_taken)
        report = measured(tmp_path, "query", "--endpoint", server.endpoint, *arguments, status=1)
    assert report.objective is not None and report.objective.rate is None
    assert [tried.rate for tried in report.objective.tried] == [20, 40]  # at less than 20/s half a second says nothing
    assert "met" not in {verdict for tried in report.objective.tried for verdict in tried.verdicts}


# ── what can go wrong ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_that_ends_in_the_middle_is_an_error_and_no_result(tmp_path: Path, lines: Path) -> None:
    with serving() as server:
        load = ("--rate", "50", "--timeout", "1", "--lengths", str(lines))
        arguments = (*load, "--seconds", "2", "--warmup", "0.1", "--repeats", "3")
        process = launch(["bench", "--endpoint", server.endpoint, *arguments, "--json", str(tmp_path / "a.json")])
        try:
            wait_until(lambda: "embedpool.bench.load" in _command_lines(process.pid), 60.0, "a load to start")
            server.stop()
            said = process.communicate(timeout=100)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 1
    assert said[1].startswith("embedpool: the benchmark failed: ") and said[1].count("\n") == 1
    assert not (tmp_path / "a.json").exists()


def test_without_the_extra_one_sentence_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("embedpool.cli.bench.find_spec", lambda _: None)
    assert main(["bench", "--rate", "10"]) == 2
    assert capsys.readouterr().err == "embedpool: benchmarks need further packages: pip install 'embedpool[bench]'\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--endpoint", "ipc:///dev/shm/nobody.sock"), "no pool is running"),
        (("--endpoint", "ipc:///x", "--model", "echo"), "give one of them"),
        (("--rate", "5", "--rates", "5,6"), "give one of them"),
        (("--rates", "10:20"), "--rates is FROM:TO:STEP"),
        (("--rate", "0"), "does not name 1 to 100 rates above 0"),
        (("--slo", "fast"), "--slo is a percentile and a time"),
        (("bulk", "--rate", "5"), "bulk work has no rate"),
        (("--seconds", "0"), "--seconds is a number from 0.1"),
        (("--lengths", "/nowhere"), "there is no file /nowhere"),
        (("--json", "/nowhere/a.json"), "there is no such directory"),
        (("--plot", "a.xyz"), "--plot draws .png"),
        (("--compare", "/nowhere/a.json", "/nowhere/b.json"), "a.json cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_sentence_and_status_2(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_two_files_are_compared_without_measuring(tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--rate", 50, "--seconds", 1, "--warmup", 0.2, "--repeats", 1, "--lengths", lines)
    with serving() as server:
        for name in ("a", "b"):
            assert bench("--endpoint", server.endpoint, *arguments, "--json", tmp_path / f"{name}.json").returncode == 0
    assert main(["bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    (p95,) = [line for line in lines if line.startswith("p95_ms")]
    assert p95.rstrip().endswith(("too few repeats", "the same"))  # one repeat tells nothing
