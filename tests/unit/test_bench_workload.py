"""Which request is due when, and with which text: decided by the seed alone."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpool.bench.workload import Workload, parse_rates, schedule, share, text_at
from embedpool.errors import ConfigError


def test_the_same_seed_gives_the_same_arrivals_and_another_one_others() -> None:
    assert schedule(100, 5, "poisson", 7) == schedule(100, 5, "poisson", 7)
    assert schedule(100, 5, "poisson", 7) != schedule(100, 5, "poisson", 8)


def test_poisson_arrivals_have_the_rate_and_the_unevenness_of_independent_users() -> None:
    due_s = schedule(200, 100, "poisson", 1)
    gaps = [b - a for a, b in pairwise(due_s)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert abs(len(due_s) / 100 - 200) < 3 * math.sqrt(200 / 100)
    assert 0.95 < deviation / mean < 1.05  # 1 for an exponential distribution, 0 for a clock


def test_fixed_arrivals_have_equal_gaps() -> None:
    assert schedule(4, 1, "fixed", 1) == [0.125, 0.375, 0.625, 0.875]


@given(st.floats(0.5, 500), st.floats(0.1, 20), st.sampled_from(["poisson", "fixed"]), st.integers(0, 99))
def test_arrivals_are_in_order_and_within_the_time(per_s: float, seconds: float, arrivals: str, seed: int) -> None:
    due_s = schedule(per_s, seconds, arrivals, seed)  # type: ignore[arg-type]
    assert due_s == sorted(due_s)
    assert all(0 <= due <= seconds + 0.5 / per_s for due in due_s)


@given(st.lists(st.text(max_size=5), min_size=1, unique=True), st.integers(1, 5), st.integers(1, 40))
def test_no_text_comes_twice_in_a_stream_or_in_two_streams(texts: list[str], parts: int, count: int) -> None:
    streams = [share(texts, part, parts) for part in range(parts)]
    whole_rounds = [[text_at(stream, i) for i in range(count)] for stream in streams]
    for asked in whole_rounds:
        assert len(set(asked)) == count or any(" (" in text for text in texts)
    first = [text for stream in streams for text in stream]
    assert len(set(first)) == len(first) or any("[" in text for text in texts)


def test_a_file_of_one_line_still_gives_different_texts() -> None:
    assert [text_at(["a line"], i) for i in range(3)] == ["a line", "a line (1)", "a line (2)"]
    assert share(["a line"], 1, 2) == ["a line [1]"]


def test_queries_get_as_many_processes_as_their_rate_needs() -> None:
    of = {rate: Workload(kind="query", rate=rate) for rate in (1.0, 2000.0, 5000.0)}
    assert [of[rate].processes for rate in of] == [1, 1, 3]
    assert Workload(kind="query", rate=50.0, clients=8).connections == 8
    assert Workload(kind="mixed", rate=50.0, clients=8).connections == 1
    assert Workload(kind="mixed", rate=50.0, clients=8).bulk_clients == 8
    assert Workload(kind="query", rate=50.0).bulk_clients == 0
    assert Workload(kind="bulk", rate=None).processes == 0


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("10:50:20", (10, 30, 50)),
        ("10:49:20", (10, 30)),
        ("0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("5,50,5", (5, 50)),
        ("7", (7,)),
    ],
)
def test_rates_are_a_sweep_or_a_list(text: str, rates: tuple[float, ...]) -> None:
    assert parse_rates(text) == pytest.approx(rates)


@pytest.mark.parametrize("text", ["", "fast", "10:20", "10:20:0", "20:10:5", "1,-2", "0", "1:1e9:1", "nan", "1:2:nan"])
def test_what_is_no_rate_is_a_mistake_that_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="--rates"):
        parse_rates(text)
