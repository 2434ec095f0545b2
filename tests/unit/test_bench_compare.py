"""Two results side by side: what is noise is called noise, and what is unlike is named."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from embedpool.bench.compare import Pair, Verdict, differences, pairs
from embedpool.bench.comparison import show_comparison
from embedpool.bench.drive import ANSWERED, Sample
from embedpool.bench.numbers import spreads
from embedpool.bench.recording import queries_of
from embedpool.bench.report import show
from embedpool.bench.results import FORMAT, Machine, Measured, Part, Point, Report, Run, Settings, Usage, read, write
from embedpool.errors import ConfigError


def run_of(ms: float, repeat: int, rate: float = 50.0, failed: int = 0) -> Run:
    """A second of queries that all took so long, and `failed` that were refused."""
    samples = [Sample(i / 50, i / 50, i / 50 + ms / 1e3, ANSWERED, 1, 10, 0.0, 0.0, ms) for i in range(50 - failed)]
    samples += [Sample(0.9, 0.9, 0.901, "overloaded") for _ in range(failed)]
    part = Part(role="workers", processes=2, cores=0.5, pss_bytes=100_000_000)
    usage = Usage(parts=(part,), load_cores=0.1, other_cores=0.0, other_requests=0, alike=0)
    queries = queries_of(samples, 0.0, 1.0)
    return Run(repeat=repeat, rate=rate, queries=queries, bulk=None, usage=usage, timeline=(), doubts=())


def report_of(*repeats_ms: float, rate: float = 50.0, model: str = "echo", failed: int = 0) -> Report:
    runs = tuple(run_of(ms, i, rate, failed) for i, ms in enumerate(repeats_ms))
    return Report(
        format=FORMAT,
        date="2026-11-24T12:00:00Z",
        machine=Machine(processor="a", cores=2, memory_gb=8, kernel="6.1", python="3.11", packages={"embedpool": "0.1"}),
        pool=Measured(
            endpoint=f"ipc:///{rate}", version="0.1", model=model, dim=384, precision="fp32", fingerprint=model,
            workers=2, cores=("0", "1"),
        ),
        settings=Settings(
            workload="query", rates=(rate,), arrivals="fixed", clients=0, rows=64, warmup_s=0, seconds=1,
            repeats=len(runs), timeout_s=10, texts="texts", seed=1,
        ),
        points=(Point(rate=rate, numbers=spreads(runs), runs=runs),),
    )  # fmt: skip


@dataclass(frozen=True)
class Case:
    a: tuple[float, ...]
    b: tuple[float, ...]
    verdict: Verdict


CASES = [
    Case((10, 11, 12), (10.5, 11.5, 12.5), "within noise"),
    Case((10, 11, 12), (7, 8, 9), "better"),
    Case((10, 11, 12), (14, 15, 16), "worse"),
    Case((10, 11), (14, 15), "too few repeats"),  # equal sides do that in 1 of 3 cases
    Case((10,), (20,), "too few repeats"),
    Case((10, 10.01, 10.02), (10.03, 10.03, 10.03), "the same"),  # apart, and nothing that anybody would notice
]


def row_of(pair: Pair, name: str) -> tuple[float | None, Verdict]:
    row = next(row for row in pair.rows if row.name == name)
    return row.ratio, row.verdict


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.verdict}, {len(case.a)} repeats")
def test_repeats_decide_what_is_noise(case: Case) -> None:
    (pair,) = pairs(report_of(*case.a), report_of(*case.b))
    ratio, verdict = row_of(pair, "p95_ms")
    assert verdict == case.verdict
    middle = sorted(case.b)[len(case.b) // 2] if len(case.b) % 2 else sum(case.b) / 2
    expected = middle / (sorted(case.a)[len(case.a) // 2] if len(case.a) % 2 else sum(case.a) / 2)
    assert ratio == pytest.approx(expected, rel=0.003)


def test_a_result_is_the_same_as_itself() -> None:
    report = report_of(10, 30, 20)
    (pair,) = pairs(report, report)
    assert {row.verdict for row in pair.rows} == {"the same"}
    assert differences(report, report) == ()


def test_answers_that_are_missing_are_worse_than_slow_ones() -> None:
    (pair,) = pairs(report_of(10, 11, 12), report_of(1, 1, 1, failed=10))
    assert row_of(pair, "p95_ms") == (None, "worse")
    assert row_of(pair, "failed_percent")[1] == "worse"
    assert row_of(pair, "p50_ms")[1] == "better"


def test_points_are_paired_by_rate_and_single_ones_anyway() -> None:
    assert pairs(report_of(10, rate=50), report_of(10, rate=60))[0].b.rate == 60
    two = msgspec.structs.replace(report_of(10), points=report_of(10, rate=50).points + report_of(10, rate=70).points)
    assert [pair.a.rate for pair in pairs(two, report_of(10, rate=70))] == [70]
    assert pairs(two, report_of(10, rate=60)) == ()


def test_the_percentiles_of_all_repeats_together_come_from_the_histograms() -> None:
    (pair,) = pairs(report_of(10, 10, 40), report_of(20, 20, 20))
    found = {each.name: (each.a_ms, each.b_ms) for each in pair.together}
    assert found["p50"] == (pytest.approx(10, rel=0.002), pytest.approx(20, rel=0.002))
    assert found["p90"] == (pytest.approx(40, rel=0.002), pytest.approx(20, rel=0.002))


def test_another_model_is_named_before_the_numbers() -> None:
    output = StringIO()
    show_comparison(report_of(10, 11, 12), report_of(7, 8, 9, model="minilm"), Console(file=output, width=120))
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("not alike")
    assert "  pool model: echo | minilm" in lines
    assert any(line.startswith("p95_ms") and "0.73" in line and line.rstrip().endswith("better") for line in lines)


def test_results_without_a_common_rate_cannot_be_compared() -> None:
    two = msgspec.structs.replace(report_of(10), points=report_of(10).points + report_of(10, rate=70).points)
    with pytest.raises(ConfigError, match="no rate in common"):
        show_comparison(two, report_of(10, rate=60), Console(file=StringIO()))


def test_a_result_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    report = report_of(10, 20, failed=3)
    write(report, str(tmp_path / "a.json"))
    assert read(str(tmp_path / "a.json")) == report


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 99}'])
def test_another_file_is_a_mistake_that_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"other\.json is no result"):
        read(str(path))


def test_the_table_shows_medians_spreads_and_what_failed() -> None:
    output = StringIO()
    show(report_of(10, 20, 40, failed=5), Console(file=output, width=128))
    text = output.getvalue()
    row = next(line for line in text.splitlines() if line.strip().startswith("50 "))
    assert row.split()[2:] == ["20.0", "20.0", "none", "none", "none", "none", "10", "%"]
    assert "10.0–40.0" in text
    assert "queries without vectors at 50/s: 15 overloaded" in text
