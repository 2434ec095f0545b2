"""The cost model is right about models that behave like none it knows, and no single measurement leads it astray."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from embedpool.protocol import Run
from embedpool.router.cost import MOST_OFF, CostModel


def teach(cost: CostModel, ms_of: Callable[[int], float], jobs: int, longest: int, seed: int = 1) -> None:
    """Jobs of up to four texts of up to `longest` tokens, each text in a run of its own, with a tenth of noise."""
    rng = random.Random(seed)
    for _ in range(jobs):
        tokens = [int(2 ** rng.uniform(2, longest.bit_length() - 1)) for _ in range(rng.randint(1, 4))]
        runs = [Run(1, n, ms_of(n) * rng.uniform(0.9, 1.1)) for n in tokens]
        units = sum(cost.units(4 * n) for n in tokens)
        cost.learn(units, sum(run.ms for run in runs) + 0.2)
        cost.learn_shape(runs)
        cost.learn_text(4 * sum(tokens), sum(tokens) + 2 * len(tokens), len(tokens))


@pytest.mark.parametrize(
    "ms_of",
    [lambda n: 0.5 + 0.2 * n, lambda n: 4 + 0.1 * n + 0.0005 * n * n, lambda n: 30.0 + 0.01 * n],
    ids=["in proportion", "attention over long texts", "nearly the same for all"],
)
def test_estimates_come_within_a_third_of_what_any_length_takes(ms_of: Callable[[int], float]) -> None:
    cost = CostModel(2048)
    cost.seed(0.001)
    teach(cost, ms_of, 3000, 2048)
    for tokens in (12, 24, 48, 96, 192, 384, 768, 1536):  # the middle of each class of lengths
        assert 0.67 < cost.row_ms(tokens) / ms_of(tokens) < 1.5, tokens


def test_the_characters_of_a_token_follow_the_texts() -> None:
    cost = CostModel(512)
    for _ in range(2000):
        cost.learn_text(chars=150, tokens=102, rows=1)
    assert cost.chars_per_token == pytest.approx(1.5, rel=0.01)
    assert cost.units(150) == pytest.approx(4 * 100 + 24, rel=0.02)


def test_a_text_costs_no_more_than_what_the_model_can_read() -> None:
    cost = CostModel(512)
    assert cost.units(4 * 512) == cost.units(1_000_000)


def test_the_speed_follows_a_machine_that_gets_slower_within_a_hundred_texts() -> None:
    cost = CostModel(512)
    teach(cost, lambda n: 0.1 * n, 1000, 512)
    before = cost.row_ms(100)
    teach(cost, lambda n: 0.2 * n, 60, 512, seed=2)
    assert 1.6 < cost.row_ms(100) / before < 2.2


def test_one_job_that_took_an_hour_does_not_make_the_model_slow() -> None:
    cost = CostModel(512)
    teach(cost, lambda n: 0.1 * n, 1000, 512)
    before = cost.row_ms(100)
    cost.learn(424, 3_600_000.0)
    cost.learn_shape([Run(1, 100, 3_600_000.0)])
    assert cost.row_ms(100) / before < MOST_OFF**0.1


def test_the_shape_does_not_drift_away_while_what_is_learned_stays_the_same() -> None:
    cost = CostModel(512)
    teach(cost, lambda n: 1 + 0.1 * n, 2000, 512)
    before = list(cost.shape)
    teach(cost, lambda n: 1 + 0.1 * n, 20_000, 512, seed=3)
    assert all(0.75 < now / then < 1.33 for now, then in zip(cost.shape, before, strict=True))


@pytest.mark.parametrize("run", [Run(1, 0, 0.0), Run(0, 10, 1.0), Run(1, 10**9, 1.0), Run(1, 10, 1e12)], ids=str)
def test_whatever_a_worker_reports_estimates_stay_finite_and_positive(run: Run) -> None:
    cost = CostModel(512)
    cost.learn(0, 5.0)
    cost.learn(10, 0.0)
    cost.learn_text(10, 1, 1)
    for _ in range(1000):
        cost.learn_shape([run])
    assert 0.0 < cost.ms(cost.units(100)) < 1e6
    assert cost.units(0) >= 1
