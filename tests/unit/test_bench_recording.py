"""From samples to numbers: nothing is left out, and nothing is counted twice."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpool.bench.drive import ANSWERED, Sample
from embedpool.bench.numbers import spread
from embedpool.bench.recording import (
    bulk_of,
    encoded,
    histogram_of,
    latency_of,
    merged,
    percentile_ms,
    queries_of,
    share_within,
    timeline_of,
)


def answered(due_s: float, ms: float, tokens: int = 10, rows: int = 1) -> Sample:
    return Sample(due_s, due_s, due_s + ms / 1e3, ANSWERED, rows, tokens, 0.0, 0.0, ms)


def refused(due_s: float, ms: float = 0.5) -> Sample:
    return Sample(due_s, due_s, due_s + ms / 1e3, "overloaded")


@given(
    st.lists(st.floats(0.002, 60_000), min_size=1, max_size=200),
    st.integers(0, 100),
    st.sampled_from([1.0, 50.0, 90.0, 95.0, 99.0, 99.9, 100.0]),
)
def test_a_percentile_is_the_rank_among_all_requests_with_failed_ones_last(
    ms: list[float], failed: int, percent: float
) -> None:
    rank = max(1, math.ceil(percent / 100 * (len(ms) + failed) - 1e-9))
    found = percentile_ms(histogram_of(ms), failed, percent)
    if rank > len(ms):
        assert found is None
    else:
        assert found == pytest.approx(sorted(ms)[rank - 1], rel=0.002, abs=0.0011)


def test_refusals_that_come_fast_do_not_make_latencies_look_better() -> None:
    samples = [answered(i / 100, 100.0) for i in range(90)] + [refused(i / 100) for i in range(90, 100)]
    latency = latency_of(samples)
    assert latency.failed == {"overloaded": 10}
    assert latency.percentiles_ms["p50"] == pytest.approx(100, rel=0.002)
    assert latency.percentiles_ms["p90"] == pytest.approx(100, rel=0.002)
    assert latency.percentiles_ms["p95"] is latency.percentiles_ms["max"] is None


def test_histograms_survive_the_file_and_add_up() -> None:
    parts = [encoded(histogram_of([1.0, 2.0, 3.0])), encoded(histogram_of([40.0]))]
    both = merged(parts)
    assert both.get_total_count() == 4
    assert percentile_ms(both, 0, 100) == pytest.approx(40, rel=0.002)
    assert percentile_ms(both, 0, 50) == pytest.approx(2, rel=0.002)


def test_queries_of_the_warm_up_do_not_count_and_late_answers_do() -> None:
    samples = [answered(i / 10, 50.0) for i in range(20)] + [answered(2.95, 3000.0)]
    found = queries_of(samples, 1.0, 3.0)
    assert found.offered_per_s == 5.5
    assert found.latency.answered == 11
    assert found.latency.percentiles_ms["max"] == pytest.approx(3000, rel=0.002)
    assert found.answered_per_s == 5.0  # ten came within the time
    assert [stage.name for stage in found.stages] == ["late", "queue", "tokenize", "run", "deliver"]


def test_what_is_left_of_the_clients_time_is_delivery_and_never_less_than_nothing() -> None:
    samples = [
        Sample(0.0, 0.001, 0.011, ANSWERED, 1, 10, 2.0, 1.0, 4.0),
        Sample(0.0, 0.001, 0.011, ANSWERED, 1, 10, 2.0, 1.0, 9.0),
    ]
    means = {stage.name: stage.mean_ms for stage in queries_of(samples, 0.0, 1.0).stages}
    assert means == pytest.approx({"late": 1.0, "queue": 2.0, "tokenize": 1.0, "run": 6.5, "deliver": 1.5}, abs=1e-3)


def test_bulk_work_counts_by_the_part_that_lies_within_the_time() -> None:
    before = Sample(0.0, 0.0, 2.0, ANSWERED, 64, 1000)  # half of it
    within = Sample(2.0, 2.0, 2.5, ANSWERED, 64, 1000)
    beyond = Sample(2.5, 2.5, 4.5, ANSWERED, 64, 1000)  # a quarter
    lasting = Sample(0.0, 0.0, 8.0, ANSWERED, 64, 1000)  # a quarter
    assert [share_within(s, 1.0, 3.0) for s in (before, within, beyond, lasting)] == [0.5, 1.0, 0.25, 0.25]
    found = bulk_of([before, within, beyond, lasting, answered(3.5, 100.0)], 1.0, 3.0)
    assert found.tokens_per_s == 1000.0
    assert found.texts_per_s == 64.0
    assert found.latency.answered == 4


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.01, 8)), max_size=20))
def test_pieces_of_time_together_have_all_the_work(spans: list[tuple[float, float]]) -> None:
    bulk = [Sample(begin, begin, begin + lasting, ANSWERED, 8, 100) for begin, lasting in spans]
    pieces = timeline_of([], bulk, 5.0, 15.0)
    tokens = sum(piece.bulk_tokens_per_s * piece.seconds for piece in pieces)
    assert tokens == pytest.approx(bulk_of(bulk, 5.0, 15.0).tokens_per_s * 10, abs=2.0)


def test_a_timeline_shows_when_the_stall_was() -> None:
    samples = [answered(i / 100, 2000.0 if 500 <= i < 600 else 1.0) for i in range(1000)]
    slow = [piece.at_s for piece in timeline_of(samples, [], 0.0, 10.0) if (piece.p50_ms or 0) > 1000]
    assert slow and all(4.8 <= at <= 6.0 for at in slow)


def test_a_latency_that_no_answer_has_is_longer_than_any() -> None:
    assert spread([3.0, None, 1.0]).median == 3.0
    assert spread([None, None, 1.0]).median is None
    assert spread([2.0, None]).most is None and spread([2.0, None]).least == 2.0
    assert spread([1.0, 2.0]).median == 1.5
