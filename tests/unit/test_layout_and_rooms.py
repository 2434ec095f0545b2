"""Room in a segment is what keeps one answer from being written over another, and nothing at run time would notice if it
failed. So random histories are played against a model that is too simple to be wrong: one flag per cache line.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpool.shm.layout import ALIGN, DTYPES, ITEM_BYTES, Dtype, aligned, fits, room_bytes, row_bytes
from embedpool.shm.room import Rooms

HUGE = 2**80  # beyond every fixed integer type that a peer could have used

# A step takes a room of n bytes (n >= 0), or gives back the (-n)th of the rooms held, counted round.
STEPS = st.lists(st.one_of(st.integers(0, 900), st.integers(-40, -1)), max_size=60)


def _first_fit(lines: list[bool], wanted: int) -> int | None:
    """The first line of `wanted` free lines in a row; `lines[i]` is true where line i is taken."""
    for start in range(len(lines) - wanted + 1):
        if not any(lines[start : start + wanted]):
            return start
    return None


def _mark(lines: list[bool], offset: int, n: int, taken: bool) -> None:
    for line in range(offset // ALIGN, offset // ALIGN + max(1, -(-n // ALIGN))):
        assert lines[line] is not taken, f"line {line} was {'taken' if taken else 'free'} already"
        lines[line] = taken


# ── rooms ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(size=st.integers(0, 5000), steps=STEPS)
@settings(max_examples=400, deadline=None)
def test_any_history_gives_the_lowest_free_room_and_never_one_that_overlaps(size: int, steps: list[int]) -> None:
    rooms = Rooms(size)
    lines = [False] * (size // ALIGN)
    held: list[tuple[int, int]] = []
    for step in steps:
        if step >= 0:
            expected = _first_fit(lines, max(1, -(-step // ALIGN)))
            offset = rooms.take(step)
            assert offset == (None if expected is None else expected * ALIGN)
            if offset is not None:
                _mark(lines, offset, step, taken=True)
                held.append((offset, step))
        elif held:
            offset, n = held.pop(-step % len(held))
            rooms.give_back(offset)
            _mark(lines, offset, n, taken=False)
        rooms.check()
        assert rooms.taken_bytes == ALIGN * sum(lines)


@given(sizes=st.lists(st.integers(0, 900), min_size=1, max_size=30), order=st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_rooms_given_back_in_any_order_leave_one_gap_of_the_whole_segment(sizes: list[int], order: object) -> None:
    size = sum(max(aligned(n), ALIGN) for n in sizes)
    rooms = Rooms(size)
    offsets = [rooms.take(n) for n in sizes]
    assert rooms.take(1) is None, "the segment was made to be full"
    order.shuffle(offsets)  # type: ignore[attr-defined]
    for offset in offsets:
        assert offset is not None
        rooms.give_back(offset)
        rooms.check()
    assert rooms.take(size) == 0


def test_freed_space_between_two_rooms_is_found_again() -> None:
    rooms = Rooms(3 * ALIGN)
    assert [rooms.take(ALIGN) for _ in range(3)] == [0, ALIGN, 2 * ALIGN]
    rooms.give_back(ALIGN)
    assert rooms.take(ALIGN + 1) is None
    assert rooms.take(ALIGN) == ALIGN
    rooms.check()


def test_a_room_given_back_twice_is_an_error_and_changes_nothing() -> None:
    rooms = Rooms(4 * ALIGN)
    first, second = rooms.take(ALIGN), rooms.take(ALIGN)
    assert first == 0 and second == ALIGN
    rooms.give_back(first)
    before = deepcopy(rooms)
    with pytest.raises(KeyError):
        rooms.give_back(first)
    assert rooms == before


@pytest.mark.parametrize("offset", [-ALIGN, 1, ALIGN, HUGE])
def test_an_offset_that_is_no_room_is_an_error_and_changes_nothing(offset: int) -> None:
    rooms = Rooms(4 * ALIGN)
    assert rooms.take(2 * ALIGN) == 0
    before = deepcopy(rooms)
    with pytest.raises(KeyError):
        rooms.give_back(offset)
    assert rooms == before


def test_a_room_that_does_not_fit_is_none_and_changes_nothing() -> None:
    rooms = Rooms(2 * ALIGN)
    before = deepcopy(rooms)
    assert rooms.take(HUGE) is None
    assert rooms.take(2 * ALIGN + 1) is None
    assert rooms == before


def test_rooms_of_no_bytes_are_still_different_rooms() -> None:
    rooms = Rooms(2 * ALIGN)
    assert [rooms.take(0), rooms.take(0), rooms.take(0)] == [0, ALIGN, None]


def test_a_segment_of_no_bytes_has_no_room() -> None:
    rooms = Rooms(0)
    rooms.check()
    assert rooms.take(0) is None


@pytest.mark.parametrize(
    "broken",
    [
        [(0, ALIGN), (ALIGN, 3 * ALIGN)],  # touching gaps
        [(0, 3 * ALIGN)],  # a line that is in no gap and no room
        [(0, 5 * ALIGN)],  # beyond the end
    ],
)
def test_check_notices_gaps_that_break_the_rules(broken: list[tuple[int, int]]) -> None:
    rooms = Rooms(4 * ALIGN)
    rooms._gaps = broken
    with pytest.raises(AssertionError):
        rooms.check()


# ── layout ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("offset", "n", "size", "inside"),
    [
        (0, 0, 0, True),
        (0, 64, 64, True),
        (64, 0, 64, True),
        (60, 4, 64, True),
        (4, 6, 64, True),  # a length need not be whole values: only where it begins matters
        (0, 65, 64, False),
        (64, 1, 64, False),
        (68, 0, 64, False),
        (-4, 4, 64, False),
        (-64, 64, 64, False),
        (0, -1, 64, False),
        (4, -4, 64, False),
        (2, 4, 64, False),
        (1, 0, 64, False),
        (2**64 - 4, 8, 64, False),  # offset + n is 4 in 64 bits
        (4, 2**64 - 4, 64, False),
        (HUGE, 4, 64, False),
        (4, HUGE, 64, False),
        (-HUGE, HUGE, 64, False),
        (0, 0, -1, False),
    ],
)
def test_fits_knows_what_lies_inside_a_segment(offset: int, n: int, size: int, inside: bool) -> None:
    assert fits(offset, n, size) is inside


@given(offset=st.integers(-200, 200) | st.integers(), n=st.integers(-200, 200) | st.integers(), size=st.integers(0, 200))
@settings(max_examples=500, deadline=None)
def test_fits_agrees_with_the_sum_where_integers_cannot_overflow(offset: int, n: int, size: int) -> None:
    assert fits(offset, n, size) == (offset >= 0 and n >= 0 and offset + n <= size and offset % ITEM_BYTES == 0)


@given(st.integers(-500, 10**6))
def test_aligned_is_the_least_multiple_that_is_not_below(n: int) -> None:
    assert aligned(n) % ALIGN == 0
    assert 0 <= aligned(n) - n < ALIGN


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_room_begins_where_a_row_may_begin(dtype: Dtype) -> None:
    rooms = Rooms(64 * ALIGN)
    offsets = [rooms.take(room_bytes(1, dim, dtype)) for dim in (1, 3, 17, 100, 384)]
    assert None not in offsets
    assert all(fits(offset or 0, room_bytes(1, 1, dtype), rooms.size) for offset in offsets)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 9, 33, 384])
def test_every_row_of_a_room_begins_where_a_row_may_begin_and_the_last_one_ends_with_it(dtype: Dtype, dim: int) -> None:
    width, size = row_bytes(dim, dtype), room_bytes(5, dim, dtype)
    assert all(fits(row * width, width, size) for row in range(5))
    assert not fits(5 * width, width, size)
    assert size == 5 * width


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        (1, {"float32": 4, "float16": 4, "int8": 12, "uint8": 12, "binary": 4, "ubinary": 4}),
        (3, {"float32": 12, "float16": 8, "int8": 12, "uint8": 12, "binary": 4, "ubinary": 4}),
        (32, {"float32": 128, "float16": 64, "int8": 40, "uint8": 40, "binary": 4, "ubinary": 4}),
        (33, {"float32": 132, "float16": 68, "int8": 44, "uint8": 44, "binary": 8, "ubinary": 8}),
        (384, {"float32": 1536, "float16": 768, "int8": 392, "uint8": 392, "binary": 48, "ubinary": 48}),
        (768, {"float32": 3072, "float16": 1536, "int8": 776, "uint8": 776, "binary": 96, "ubinary": 96}),
    ],
)
def test_rows_of_known_dimensions(dim: int, expected: dict[Dtype, int]) -> None:
    assert {dtype: row_bytes(dim, dtype) for dtype in expected} == expected
    assert tuple(expected) == DTYPES, "the table of the layout has another type"


def test_room_bytes_counts_float32_values_unless_told_otherwise() -> None:
    assert (row_bytes(384), room_bytes(3, 384)) == (384 * 4, 3 * 384 * 4)
    assert room_bytes(0, 384) == room_bytes(0, 384, "int8") == 0
