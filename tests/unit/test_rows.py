"""A view is all that stands between a client's numbers and raw bytes that another process wrote: a field read four bytes
beside its place gives numbers that look like numbers. So the bytes are packed here by hand, as the table in shm.layout says.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import embedpool
from embedpool.shm.layout import CODES_AT, DTYPES, ITEM_BYTES, Dtype, room_bytes, row_bytes
from embedpool.shm.rows import coded, dequantized, empty, view

DIMS = range(1, 71)
CODED: tuple[Dtype, ...] = ("int8", "uint8")


def _plain(dim: int, dtype: str) -> int:
    """Bytes of a row before it is filled up, by the table in shm.layout."""
    return {
        "float32": 4 * dim,
        "float16": 2 * dim,
        "int8": 8 + dim,
        "uint8": 8 + dim,
        "binary": math.ceil(dim / 8),
        "ubinary": math.ceil(dim / 8),
    }[dtype]


def _room(rows: int, dim: int, dtype: Dtype) -> NDArray[np.uint8]:
    """Bytes none of which is like its neighbours, and whose floats are finite."""
    return np.random.default_rng(dim).integers(1, 100, room_bytes(rows, dim, dtype), np.uint8)


def _filled(*rows: bytes) -> NDArray[np.uint8]:
    """Rows that lie one behind the other, each filled up to a multiple of four bytes with what no value is."""
    return np.frombuffer(b"".join(row + b"\x55" * (-len(row) % 4) for row in rows), np.uint8)


def _seen(rows: NDArray[Any]) -> bytes:
    """The bytes of all values; a record's own bytes would be those that it is filled up with too."""
    names = rows.dtype.names
    return b"".join(rows[name].tobytes() for name in names) if names else rows.tobytes()


# ── bytes of a row ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_its_values_filled_up_to_a_multiple_of_four_bytes(dtype: Dtype) -> None:
    for dim in DIMS:
        assert row_bytes(dim, dtype) % ITEM_BYTES == 0
        assert 0 <= row_bytes(dim, dtype) - _plain(dim, dtype) < ITEM_BYTES
        assert room_bytes(7, dim, dtype) == 7 * row_bytes(dim, dtype)


@pytest.mark.parametrize("dtype", CODED)
def test_a_record_is_as_large_as_its_row_and_its_fields_are_where_the_layout_says(dtype: Dtype) -> None:
    for dim in DIMS:
        kind = coded(dim, dtype)
        assert kind.itemsize == row_bytes(dim, dtype)
        assert kind.fields is not None
        found = {name: (offset, of.base.str, of.shape) for name, (of, offset, *_) in kind.fields.items()}
        codes = "|i1" if dtype == "int8" else "|u1"
        assert found == {"scale": (0, "<f4", ()), "shift": (4, "<f4", ()), "values": (CODES_AT, codes, (dim,))}


# ── views ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dtype", "raw", "values"),
    [
        ("float32", _filled(struct.pack("<3f", 1, -2, 0.5), struct.pack("<3f", 4, 5, 6)), [[1, -2, 0.5], [4, 5, 6]]),
        ("float16", _filled(struct.pack("<3e", 1, -2, 0.5), struct.pack("<3e", 4, 5, 6)), [[1, -2, 0.5], [4, 5, 6]]),
        ("binary", _filled(struct.pack("b", -128), struct.pack("b", 127)), [[-128], [127]]),
        ("ubinary", _filled(struct.pack("B", 0), struct.pack("B", 255)), [[0], [255]]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_are_read_from_where_the_layout_puts_them(dtype: Dtype, raw: NDArray[np.uint8], values: Any) -> None:
    found = view(raw, 2, 3, dtype)
    assert found.tolist() == values
    assert found.dtype == {"float32": "<f4", "float16": "<f2", "binary": "i1", "ubinary": "u1"}[dtype]


@pytest.mark.parametrize(("dtype", "letter", "low", "high"), [("int8", "b", -127, 127), ("uint8", "B", 0, 255)])
def test_records_are_read_from_where_the_layout_puts_them(dtype: Dtype, letter: str, low: int, high: int) -> None:
    one, two = (struct.pack(f"<ff3{letter}", *row) for row in ((0.5, 1, low, high, 3), (0.25, -4, 1, 2, high)))
    found = view(_filled(one, two), 2, 3, dtype)
    assert found.shape == (2,)
    assert (found["scale"].tolist(), found["shift"].tolist()) == ([0.5, 0.25], [1, -4])
    assert found["values"].tolist() == [[low, high, 3], [1, 2, high]]
    assert found["values"].dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_view_has_a_row_per_text_and_nothing_of_what_rows_are_filled_up_with(dtype: Dtype, rows: int) -> None:
    for dim in DIMS:
        found = view(_room(rows, dim, dtype), rows, dim, dtype)
        if dtype in CODED:
            assert (found.shape, found["values"].shape) == ((rows,), (rows, dim))
        else:
            assert found.shape == (rows, math.ceil(dim / 8) if "binary" in dtype else dim)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_view_is_over_the_same_memory(dtype: Dtype) -> None:
    for dim in DIMS:
        raw = _room(3, dim, dtype)
        found = view(raw, 3, dim, dtype)
        assert np.shares_memory(raw, found)
        before = _seen(found[2])
        width = row_bytes(dim, dtype)
        raw[: 2 * width] = 0
        raw[2 * width + _plain(dim, dtype) :] = 0
        assert _seen(found[2]) == before, "another row's bytes, or what a row is filled up with, are read"
        for i in range(_plain(dim, dtype)):
            raw[2 * width + i] ^= 0x80
            assert _seen(found[2]) != before, f"byte {i} of the row is not read"
            raw[2 * width + i] ^= 0x80


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("writable", [True, False])
def test_what_is_read_only_stays_so(dtype: Dtype, writable: bool) -> None:
    raw = _room(2, 5, dtype)
    raw.flags.writeable = writable
    found = view(raw, 2, 5, dtype)
    assert found.flags.writeable is writable
    if dtype in CODED:
        assert found["values"].flags.writeable is writable


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_room_need_not_begin_where_its_values_would_like_to(dtype: Dtype) -> None:
    raw = _room(2, 5, dtype)
    odd = np.frombuffer(b"\0" + raw.tobytes(), np.uint8)[1:]
    assert _seen(view(odd, 2, 5, dtype)) == _seen(view(raw, 2, 5, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_array_has_the_form_of_a_view_and_memory_of_its_own(dtype: Dtype) -> None:
    for rows, dim in ((0, 3), (4, 1), (2, 9)):
        like, made, other = (view(_room(rows, dim, dtype), rows, dim, dtype), empty(rows, dim, dtype), empty(rows, dim, dtype))
        assert (made.dtype, made.shape) == (like.dtype, like.shape)
        assert made.flags.writeable
        assert not np.shares_memory(made, other)
        assert not any(_seen(made))
        made[:] = like
        assert _seen(made) == _seen(like)


# ── dequantized ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", CODED)
def test_dequantized_values_are_code_times_scale_plus_shift_of_their_own_row(dtype: Dtype) -> None:
    low, high = (-127, 127) if dtype == "int8" else (0, 255)
    rows = empty(3, 4, dtype)
    rows["values"] = [[low, 0, 1, high], [high, high, low, 2], [3, 3, 3, 3]]
    rows["scale"], rows["shift"] = [0.5, 0.25, 2.0], [0.0, -32.0, 1.0]
    expected = [
        [0.5 * low, 0.0, 0.5, 0.5 * high],
        [0.25 * high - 32, 0.25 * high - 32, 0.25 * low - 32, -31.5],
        [7.0, 7.0, 7.0, 7.0],
    ]
    found = dequantized(rows)
    assert (found.dtype.name, found.shape, found.tolist()) == ("float32", (3, 4), expected)
    assert dequantized(rows[1:]).tolist() == expected[1:]
    assert dequantized(rows[:0]).shape == (0, 4)


def test_one_record_is_dequantized_to_one_vector() -> None:
    rows = empty(2, 3, "int8")
    rows["values"], rows["scale"], rows["shift"] = [[1, 2, 3], [-4, 5, -6]], [0.5, 0.25], [0.0, 1.0]
    found = dequantized(rows[1])  # what embed_query gives
    assert (found.dtype.name, found.shape, found.tolist()) == ("float32", (3,), [0.0, 2.25, -0.5])


def test_dequantized_vectors_are_a_copy_and_the_records_stay_as_they_are() -> None:
    rows = empty(1, 3, "uint8")
    rows["values"], rows["scale"] = [[1, 2, 3]], 0.5
    before = rows.copy()
    found = dequantized(rows)
    assert not np.shares_memory(found, rows)
    assert (rows == before).all()


def test_dequantized_is_public() -> None:
    assert embedpool.dequantized is dequantized
