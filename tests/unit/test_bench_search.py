"""The search finds the threshold of a pool that has one, is not led astray by one disturbed run, and always ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpool.bench.results import Objective
from embedpool.bench.search import LOWEST_PER_S, MOST_RUNS, RESOLUTION, Search, Slo, Verdict, parse_slo
from embedpool.errors import ConfigError

SLO = Slo(95, 20)


def play(start: float, repeats: int, run: Callable[[float, int], Verdict], most_runs: int = MOST_RUNS) -> Objective:
    search, times = Search(start, repeats, most_runs=most_runs), dict[float, int]()
    while (rate := search.next_rate()) is not None:
        times[rate] = times.get(rate, 0) + 1
        search.took(run(rate, times[rate]))
        assert search.runs <= most_runs
    return search.result(SLO)


@given(st.floats(0.2, 90_000), st.floats(0.5, 5000), st.integers(1, 5))
def test_the_highest_rate_of_a_monotone_system_is_found(threshold: float, start: float, repeats: int) -> None:
    found = play(start, repeats, lambda rate, _: "met" if rate <= threshold else "missed", most_runs=500)
    assert found.rate is not None
    assert found.rate <= threshold < found.rate * (1 + RESOLUTION) * 1.01  # rates have three digits
    assert found.ended_by == "slo"


@given(st.floats(1, 10_000), st.sampled_from([1, 2, 3]), st.integers(0, 2))
def test_one_disturbed_run_of_three_at_each_rate_changes_nothing(threshold: float, disturbed: int, kind: int) -> None:
    def run(rate: float, times: int) -> Verdict:
        truth: Verdict = "met" if rate <= threshold else "missed"
        wrong: Verdict = ("missed", "late", "missed")[kind] if truth == "met" else "met"
        return wrong if times == disturbed else truth

    found = play(50, 3, run, most_runs=500)
    assert found.rate is not None
    assert found.rate <= threshold < found.rate * (1 + RESOLUTION) * 1.01


@given(st.randoms(use_true_random=False), st.floats(0.1, 1000), st.integers(1, 4))
def test_it_ends_whatever_comes_of_the_runs(random: object, start: float, repeats: int) -> None:
    verdicts: tuple[Verdict, ...] = ("met", "missed", "late")
    found = play(start, repeats, lambda *_: random.choice(verdicts))  # type: ignore[attr-defined]
    assert found.rate is None or found.rate in [tried.rate for tried in found.tried]


def test_no_rate_is_run_longer_than_until_it_is_decided() -> None:
    found = play(100, 3, lambda rate, _: "met" if rate <= 300 else "missed")
    assert all(len(tried.verdicts) == 2 for tried in found.tried)
    assert found.rate is not None and 280 < found.rate <= 300


def test_an_objective_that_no_rate_meets_has_no_rate() -> None:
    found = play(50, 1, lambda *_: "missed")
    assert found.rate is None
    assert found.tried[0].rate < 2 * LOWEST_PER_S


def test_a_load_that_is_the_limit_is_named_as_the_limit() -> None:
    found = play(50, 1, lambda rate, _: "met" if rate <= 3000 else "late")
    assert found.rate is not None and 2800 < found.rate <= 3000
    assert found.ended_by == "load"


def test_a_search_without_time_says_that_it_did_not_end() -> None:
    found = play(1, 1, lambda *_: "met", most_runs=4)
    assert (found.rate, found.ended_by) == (8, "runs")


@pytest.mark.parametrize(
    ("text", "slo"), [("p95=20ms", Slo(95, 20)), ("p99.9<=1.5s", Slo(99.9, 1500)), (" p50 < 3 ms", Slo(50, 3))]
)
def test_an_objective_is_a_percentile_and_a_time(text: str, slo: Slo) -> None:
    assert parse_slo(text) == slo


@pytest.mark.parametrize("text", ["", "p95", "95=20ms", "p95=20", "p100=20ms", "p0=1ms", "p95=0ms", "p95=-1ms", "mean=20ms"])
def test_what_is_no_objective_is_a_mistake_that_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo"):
        parse_slo(text)
