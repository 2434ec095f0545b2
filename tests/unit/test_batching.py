"""Batches decide the cost of a job, and a row lost or doubled here would be an answer that never comes. The rules are few
enough to be checked for any list of lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpool.worker.batching import BATCH_TOKENS, LEAST_FILL, Batch, micro_batches

# Short lengths make full batches, long ones make rows that are alone.
LENGTHS = st.lists(st.integers(0, 20) | st.integers(0, 600), max_size=80)


def _lengths_in_order(batches: Sequence[Batch], lengths: Sequence[int]) -> list[int]:
    return [lengths[row] for batch in batches for row in batch.rows]


@given(LENGTHS)
@settings(max_examples=400, deadline=None)
def test_every_row_is_in_exactly_one_batch(lengths: list[int]) -> None:
    rows = [row for batch in micro_batches(lengths) for row in batch.rows]
    assert sorted(rows) == list(range(len(lengths)))


@given(LENGTHS)
@settings(max_examples=400, deadline=None)
def test_the_longest_rows_run_first(lengths: list[int]) -> None:
    assert _lengths_in_order(micro_batches(lengths), lengths) == sorted(lengths, reverse=True)


@given(LENGTHS)
@settings(max_examples=400, deadline=None)
def test_a_batch_is_as_wide_as_its_longest_row_and_no_wider(lengths: list[int]) -> None:
    for batch in micro_batches(lengths):
        assert batch.width == max(1, *(lengths[row] for row in batch.rows))


@given(LENGTHS)
@settings(max_examples=400, deadline=None)
def test_no_batch_of_several_rows_exceeds_the_token_limit(lengths: list[int]) -> None:
    for batch in micro_batches(lengths):
        assert len(batch.rows) == 1 or len(batch.rows) * batch.width <= BATCH_TOKENS


@given(LENGTHS)
@settings(max_examples=400, deadline=None)
def test_padding_never_takes_more_of_a_row_than_is_allowed(lengths: list[int]) -> None:
    for batch in micro_batches(lengths):
        for row in batch.rows:
            # A row without tokens is alone: its width of 1 is what a matrix needs to exist.
            assert lengths[row] >= LEAST_FILL * batch.width or (lengths[row] == 0 and len(batch.rows) == 1)


@given(LENGTHS)
@settings(max_examples=400, deadline=None)
def test_a_batch_ends_only_where_the_next_row_would_break_a_rule(lengths: list[int]) -> None:
    batches = micro_batches(lengths)
    for batch, following in pairwise(batches):
        full = (len(batch.rows) + 1) * batch.width > BATCH_TOKENS
        too_short = lengths[following.rows[0]] < LEAST_FILL * batch.width
        assert full or too_short


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([], []),
        ([7], [Batch((0,), 7)]),
        ([0], [Batch((0,), 1)]),
        ([600], [Batch((0,), 600)]),
        ([0, 3], [Batch((1,), 3), Batch((0,), 1)]),
        ([64, 64, 64], [Batch((0, 1), 64), Batch((2,), 64)]),
        ([64, 65], [Batch((1,), 65), Batch((0,), 64)]),  # two rows of 65 are more than 128 tokens
        ([43, 43, 43], [Batch((0, 1), 43), Batch((2,), 43)]),  # three rows of 43 are 129 tokens
        ([17, 20, 16, 20], [Batch((1, 3, 0), 20), Batch((2,), 16)]),  # 17 is 85 % of 20, 16 is less
        ([300, 300], [Batch((0,), 300), Batch((1,), 300)]),
    ],
)
def test_batches_of_known_lengths(lengths: list[int], batches: list[Batch]) -> None:
    assert micro_batches(lengths) == batches


@given(LENGTHS)
@settings(max_examples=200, deadline=None)
def test_rows_that_must_run_alone_each_have_a_batch_of_their_own_width(lengths: list[int]) -> None:
    batches = micro_batches(lengths, alone=True)
    assert sorted(batches, key=lambda batch: batch.rows) == [Batch((row,), max(n, 1)) for row, n in enumerate(lengths)]


@given(LENGTHS, st.integers(1, 700))
@settings(max_examples=200, deadline=None)
def test_a_model_may_want_other_batches(lengths: list[int], tokens: int) -> None:
    batches = micro_batches(lengths, tokens=tokens)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(lengths)))
    assert all(len(batch.rows) == 1 or len(batch.rows) * batch.width <= tokens for batch in batches)


def test_many_equal_short_rows_fill_whole_batches() -> None:
    batches = micro_batches([8] * 40)
    assert [len(batch.rows) for batch in batches] == [16, 16, 8]


def test_rows_without_tokens_are_kept() -> None:
    batches = micro_batches([0, 0, 5])
    assert [batch.rows for batch in batches] == [(2,), (0,), (1,)]
    assert all(batch.width >= 1 for batch in batches)
