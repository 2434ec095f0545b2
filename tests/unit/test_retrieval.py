"""The measures of bench/quality.py against cases that are worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bench.retrieval import (
    Standing,
    dots,
    interval,
    matching_bits,
    ndcg,
    recall,
    reciprocal_rank,
    resampled,
    standing,
    within_noise,
)

# Query 0 finds its document first, query 1 third, query 2 second.
SCORES = np.array([[0.9, 0.1, 0.3, 0.2], [0.5, 0.2, 0.8, 0.1], [0.1, 0.7, 0.6, 0.2]], np.float32)


def of(above: list[int], tied: list[int]) -> Standing:
    return Standing(np.array(above), np.array(tied))


def test_ranks_count_the_documents_that_score_higher() -> None:
    found = standing(SCORES)
    assert found.above.tolist() == [0, 2, 1]
    assert found.tied.tolist() == [1, 1, 1]


def test_recall_asks_whether_the_right_document_is_among_the_first() -> None:
    found = standing(SCORES)
    assert recall(found, 1).tolist() == [1, 0, 0]
    assert recall(found, 2).tolist() == [1, 0, 1]
    assert recall(found, 3).tolist() == [1, 1, 1]


def test_ndcg_falls_with_the_logarithm_of_the_rank_and_ends_at_k() -> None:
    found = standing(SCORES)
    assert ndcg(found, 10) == pytest.approx([1, 1 / 2, 1 / math.log2(3)])
    assert ndcg(found, 2) == pytest.approx([1, 0, 1 / math.log2(3)])


def test_the_reciprocal_rank_has_no_end() -> None:
    assert reciprocal_rank(standing(SCORES)) == pytest.approx([1, 1 / 3, 1 / 2])
    assert reciprocal_rank(of([999], [1])) == pytest.approx([1 / 1000])


def test_tied_documents_share_what_their_ranks_are_worth() -> None:
    """The right one is tied with two others, below one: it is second, third or fourth, each in a third of all orders."""
    found = of([1], [3])
    assert recall(found, 1) == pytest.approx([0])
    assert recall(found, 2) == pytest.approx([1 / 3])
    assert recall(found, 3) == pytest.approx([2 / 3])
    assert reciprocal_rank(found) == pytest.approx([(1 / 2 + 1 / 3 + 1 / 4) / 3])
    assert ndcg(found, 10) == pytest.approx([(1 / math.log2(3) + 1 / 2 + 1 / math.log2(5)) / 3])


def test_where_all_scores_are_equal_nothing_was_found_but_by_chance() -> None:
    found = standing(np.ones((4, 4), np.float32))
    assert recall(found, 1) == pytest.approx([1 / 4] * 4)


def test_there_is_a_document_for_each_query() -> None:
    with pytest.raises(ValueError, match="3 queries for 2 documents"):
        standing(np.zeros((3, 2), np.float32))


def test_bits_are_compared_by_their_hamming_distance() -> None:
    queries = np.array([[0b11110000, 0b00000000]], np.uint8)
    documents = np.array([[0b11110000, 0], [0b11110001, 0], [0b00001111, 0xFF]], np.uint8)
    # Of 16 bits, 0, 1 and 16 differ: equal ones less these.
    assert matching_bits(queries, documents).tolist() == [[16, 14, -16]]


def test_floats_are_compared_by_their_product() -> None:
    assert dots(np.array([[1, 0]], np.float32), np.array([[0.6, 0.8], [0, 1]], np.float32)).tolist() == [
        [pytest.approx(0.6), 0]
    ]


def test_a_resample_draws_as_many_queries_as_there_are_and_the_same_for_the_same_seed() -> None:
    weights = resampled(7, seed=3, times=50)
    assert weights.shape == (50, 7)
    assert weights.sum(axis=1) == pytest.approx([1.0] * 50)
    assert np.array_equal(weights, resampled(7, seed=3, times=50))
    assert not np.array_equal(weights, resampled(7, seed=4, times=50))


def test_the_interval_of_a_proportion_is_the_binomial_one() -> None:
    """400 queries, half of them found: the standard error is sqrt(0.25 / 400) = 0.025, 1.96 of it to each side."""
    values = np.repeat([0.0, 1.0], 200)
    found = interval(values, resampled(400, seed=1))
    assert found.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.006)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.006)


def test_values_that_do_not_differ_have_an_interval_without_width() -> None:
    found = interval(np.full(5, 0.25), resampled(5, seed=1))
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_a_difference_on_every_query_is_told_from_noise_and_a_mixed_one_is_not() -> None:
    weights = resampled(100, seed=1)
    assert not within_noise(interval(np.full(100, -0.01), weights))
    assert within_noise(interval(np.tile([0.5, -0.5], 50), weights))
