"""The pure parts of the soak: what is planned when, and whether a line is flat."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))  # scripts there import each other by their plain names

import soak
import soak_clients
import soak_page
import soak_plan
from common import arrivals
from soak_lines import Slope, autocorrelation, medians, slope_of, verdict

MINUTES = [60.0 * i + 57.0 for i in range(15)]


def noisy(per_hour: float, deviation: float, seed: int = 1) -> list[float]:
    rng = np.random.default_rng(seed)
    return [30 + per_hour * at / 3600 + rng.normal(0, deviation) for at in MINUTES]


# ── slopes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_straight_line_has_its_own_slope_and_no_doubt() -> None:
    slope = slope_of(MINUTES, [5 + 3 * at / 3600 for at in MINUTES])
    assert slope is not None
    assert (slope.per_hour, slope.low, slope.high) == (pytest.approx(3), pytest.approx(3), pytest.approx(3))
    assert slope.resolves == pytest.approx(0, abs=1e-9)


def test_a_few_odd_values_do_not_tilt_the_line() -> None:
    values = np.full(15, 30.0)
    values[[3, 12]] = 500.0
    slope = slope_of(MINUTES, values.tolist())
    assert slope is not None
    assert slope.per_hour == 0


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_the_interval_holds_the_true_slope_about_as_often_as_it_says(kept: float) -> None:
    """Also where a value keeps half of what the one before it was off: 95 % are meant."""
    held = 0
    for seed in range(100):
        off = np.random.default_rng(seed).normal(0, 1, 15)
        for i in range(1, 15):
            off[i] += kept * off[i - 1]
        slope = slope_of(MINUTES, [4.0 * at / 3600 + one for at, one in zip(MINUTES, off, strict=True)])
        held += slope is not None and slope.low <= 4.0 <= slope.high
    assert 90 <= held < 100


def test_what_neighbours_have_in_common_is_found() -> None:
    assert autocorrelation(np.array([1.0, -1.0] * 8)) == 0.0
    assert autocorrelation(np.full(9, 3.0)) == 0.0
    assert autocorrelation(np.array([1.0] * 8 + [-1.0] * 8)) == pytest.approx(0.8)


def test_noise_widens_the_interval() -> None:
    calm, loud = slope_of(MINUTES, noisy(0, 0.01)), slope_of(MINUTES, noisy(0, 1.0))
    assert calm is not None and loud is not None
    assert loud.resolves > 20 * calm.resolves


def test_too_few_points_have_no_slope() -> None:
    assert slope_of([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-0.5, 0.5, "flat"), (0.4, 1.2, "undecided"), (1.1, 2.0, "grows"), (-9.0, -3.0, "flat")]
)
def test_a_line_is_flat_or_grows_only_where_the_whole_interval_does(low: float, high: float, expected: str) -> None:
    assert verdict(Slope((low + high) / 2, low, high, 15), 1.0) == expected


def test_nothing_is_said_of_a_line_without_a_slope() -> None:
    assert verdict(None, 1.0) == "undecided"


def test_a_leak_of_two_megabytes_an_hour_is_found_under_little_noise_and_not_denied_under_much() -> None:
    calm = [verdict(slope_of(MINUTES, noisy(2.0, 0.02, seed)), 1.0) for seed in range(20)]
    assert calm.count("grows") >= 18
    loud = [verdict(slope_of(MINUTES, noisy(2.0, 2.0, seed)), 1.0) for seed in range(20)]
    assert loud.count("undecided") >= 18


def test_a_stretch_of_time_gives_its_medians() -> None:
    assert medians([0.0, 1.0, 2.0, 60.0], [5.0, 9.0, 6.0, 7.0], 60.0) == [(1.0, 6.0), (60.0, 7.0)]


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_begins_in_the_quiet_part_of_a_minute() -> None:
    plan = [visit.due_s for visit in soak_plan.visits(arrivals(2.0, 1200, 1), 1)]
    begun = [*plan, *soak_plan.kills(1200, 1), *soak_plan.reloads(1200)]
    assert len(begun) > 1000
    assert all(soak_plan.is_busy(at) and not soak_plan.is_quiet(at) for at in begun)


def test_the_last_burst_of_a_minute_comes_after_its_last_kill_and_before_its_quiet_moments() -> None:
    late = [at for at in soak_plan.bursts(1200) if not soak_plan.is_busy(at)]
    assert len(late) == 20
    assert not any(soak_plan.is_quiet(at) for at in late)


def test_whoever_stalls_has_gone_on_before_it_is_quiet() -> None:
    assert soak_plan.BUSY_S + soak_plan.STALL_S[1] + max(soak_clients.HIT_S) < soak_plan.MINUTE_S - soak_plan.LOOK_S


def test_twenty_minutes_have_every_kind_of_visit_many_times() -> None:
    kinds = Counter(visit.kind for visit in soak_plan.visits(arrivals(2.0, 1200, 1), 1))
    assert set(kinds) == set(soak_plan.WEIGHTS)
    assert min(kinds.values()) >= 30


def test_workers_are_killed_and_the_pool_reloaded_again_and_again() -> None:
    kills = np.array(soak_plan.kills(1200, 1))
    assert len(kills) >= 35
    assert (np.diff(kills) > 0).all()
    assert soak_plan.reloads(1200) == [20.0 + 120.0 * i for i in range(10)]


def test_the_same_seed_gives_the_same_plan() -> None:
    due = arrivals(2.0, 300, 3)
    assert soak_plan.visits(due, 3) == soak_plan.visits(due, 3) != soak_plan.visits(due, 4)
    assert soak_plan.kills(600, 3) == soak_plan.kills(600, 3) != soak_plan.kills(600, 4)


# ── verdicts on a whole run, and their words ─────────────────────────────────────────────────────────────────────────


def test_only_clients_that_were_to_be_killed_may_end_without_their_answers() -> None:
    visits = {"leaves: done": 5, "dies: killed": 3, "stalls and dies: killed": 1, "stalls: hangs": 1, "dies at work: done": 1}
    asked = Counter({"done": 100, "expired": 2})
    found = soak.unexpected(asked, Counter({"done": 9}), visits, wrong_rows=4)
    assert found == {"query: expired": 2, "stalls: hangs": 1, "dies at work: done": 1, "burst: wrong rows": 4}
    assert soak.unexpected(Counter({"done": 1}), Counter(), {"refused: done": 1}, wrong_rows=0) == {}


def test_a_line_is_judged_by_its_quiet_moments_after_the_warm_up() -> None:
    """It grows in the busy parts and in the first two minutes, and there alone."""
    samples = []
    for at in range(1, 600):
        leaked = 0.0 if soak_plan.is_quiet(at) and at >= 120 else at / 10
        samples.append(soak.Sample(float(at), {"router_mb": 25.0 + leaked, "sessions": 3 + at // 60}, (1,)))
    found = soak.lines(samples, warm_up_s=120.0)
    assert (found["router_mb"]["verdict"], found["router_mb"]["points"]) == ("flat", 8)
    assert found["sessions"]["verdict"] == "grows", "one more is left every minute"
    assert found["segments"]["verdict"] == "undecided", "nobody has looked at them"


def test_slopes_are_told_with_sign_unit_and_interval() -> None:
    line = {"per_hour": -0.126, "interval": [-12.3, 0.4]}
    assert soak_page.slope_in_words(line, " MB") == "−0.13 MB per hour (−12 – +0.40)"
    assert soak_page.slope_in_words({"per_hour": 0.0, "interval": [0.0, 0.0]}, "") == "0 per hour"
    assert soak_page.slope_in_words({"per_hour": None, "interval": None}, "") == "too few points for a slope"


def test_wrong_answers_are_told_apart_from_those_that_did_not_come() -> None:
    failed = {"leaves: wrong": 2, "burst: wrong rows": 3, "stalls: failed: expired": 4, "query: no_answer": 1}
    assert soak_page.failures({"failed": failed}) == (5, 5)
