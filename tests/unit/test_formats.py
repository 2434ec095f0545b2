"""The last step before a vector leaves: whatever is wrong here is wrong in every vector, and plausible. So each type is
compared with a computation written another way (Python's floats and sums, and sentence-transformers' own two lines for
bits), and whatever lies around a row's bytes is looked at after every write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedpool.shm.layout import DTYPES, Dtype, row_bytes
from embedpool.shm.rows import dequantized, view
from embedpool.worker.formats import NotFinite, write

DIMS = [1, 3, 7, 8, 9, 17, 64]
CODED: tuple[Dtype, ...] = ("int8", "uint8")
BITS: tuple[Dtype, ...] = ("binary", "ubinary")
AROUND = 24  # bytes on either side of a row that must stay as they are
UNTOUCHED = 0xA5

pytestmark = pytest.mark.filterwarnings("error")  # numpy only warns where it divides by nothing


def _vector(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def _values(vector: Sequence[float] | NDArray[Any], dim: int, normalize: bool) -> list[float]:
    """What the row should stand for: cut, and only then made as long as 1."""
    cut = [float(x) for x in vector[:dim]]
    length = math.sqrt(math.fsum(x * x for x in cut)) if normalize else 1.0
    return [x / length for x in cut] if length else cut


def _bytes(
    vector: NDArray[Any], dim: int, dtype: Dtype, normalize: bool = True, known: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """The row's bytes, written in the midst of others, which stay as they are; so does the vector."""
    n, before = row_bytes(dim, dtype), vector.copy()
    memory = np.full(n + 2 * AROUND, UNTOUCHED, np.uint8)
    try:
        write(memory[AROUND : AROUND + n], vector, dim, dtype, normalize, known)
    except NotFinite:
        assert (memory == UNTOUCHED).all(), "a row that failed was written"
        raise
    finally:
        outside = np.concatenate([memory[:AROUND], memory[AROUND + n :]])
        assert (outside == UNTOUCHED).all(), "something was written outside of the row"
        assert vector.tobytes() == before.tobytes(), "the model's own vector was changed"
    return memory[AROUND : AROUND + n]


def _row(vector: NDArray[Any], dim: int, dtype: Dtype, normalize: bool = True, known: tuple[float, float] | None = None) -> Any:
    """The row as a client sees it."""
    return view(_bytes(vector, dim, dtype, normalize, known), 1, dim, dtype)[0]


def _assert_stands_for(row: Any, values: Sequence[float], dtype: Dtype) -> None:
    """That a row is as near to these values as its type can come."""
    wanted = np.array(values, np.float64)
    if dtype in BITS:
        assert np.unpackbits(row.view(np.uint8) ^ (0x80 if dtype == "binary" else 0))[: len(values)].tolist() == [
            int(x > 0) for x in values
        ]
        return
    bound: Any
    if dtype in CODED:
        # Half a step; and float32's own grain, which is coarse where the scale is below 1e-38.
        found, bound = dequantized(row), float(row["scale"]) * 0.50001 + 1e-42
    else:
        found, bound = row, abs(wanted) * (2.0**-24 if dtype == "float32" else 2.0**-11) * 1.00001
        bound += 2.0**-150 if dtype == "float32" else 2.0**-25  # below the least normal number
    assert (abs(found.astype(np.float64) - wanted) <= bound).all()


# ── every type ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", DIMS)
def test_a_vector_is_cut_and_only_then_normalised_in_every_type(dtype: Dtype, normalize: bool, dim: int) -> None:
    for seed in range(10):
        vector = _vector(64, seed) * np.float32(9)
        vector[dim:] *= 100  # a length that is measured before the cut would be far too large
        _assert_stands_for(_row(vector, dim, dtype, normalize), _values(vector, dim, normalize), dtype)


def test_a_matryoshka_vector_in_numbers() -> None:
    vector = np.array([3, 4, 12, 84], np.float32)
    lengths = {1: 3, 2: 5, 3: 13, 4: 85}
    for dim, length in lengths.items():
        expected = [float(np.float32(x / length)) for x in (3, 4, 12, 84)[:dim]]
        assert _row(vector, dim, "float32").tolist() == expected
        assert _row(vector, dim, "float32", normalize=False).tolist() == [3, 4, 12, 84][:dim]
        assert _row(vector, dim, "float16").tolist() == [float(np.float16(x / length)) for x in (3, 4, 12, 84)[:dim]]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_that_are_not_to_be_normalised_are_passed_on_to_the_last_bit(dtype: Dtype) -> None:
    numbers = [0.1, -0.0, 1e-40, -1e-7, 65504.0, -3.25, 5e-8, 1 / 3]
    vector = np.array(numbers, np.float32)
    assert _bytes(vector, 8, dtype, normalize=False).tobytes() == vector.astype(dtype).tobytes()


@pytest.mark.parametrize("size", [1e-38, 1e-25, 1.0, 1e25, 3e38])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_is_normalised_however_long_it_is(dtype: Dtype, size: float) -> None:
    vector = np.array([size, -size, 0.0, size], np.float32)
    _assert_stands_for(_row(vector, 4, dtype), [3**-0.5, -(3**-0.5), 0.0, 3**-0.5], dtype)


@pytest.mark.parametrize("dim", [64, 768])
def test_a_unit_vector_is_of_unit_length_to_the_last_digit(dim: int) -> None:
    for seed in range(50):
        row = _row(_vector(dim, seed), dim, "float32").astype(np.float64)
        assert abs(math.sqrt(math.fsum(row * row)) - 1.0) < 6e-8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", DIMS)
def test_a_zero_vector_stays_one(dtype: Dtype, normalize: bool, dim: int) -> None:
    row = _row(np.zeros(64, np.float32), dim, dtype, normalize)
    if dtype in CODED:
        assert dequantized(row).tolist() == [0.0] * dim
        assert (float(row["scale"]), float(row["shift"])) == (0.0, 0.0)
        assert row["values"].tolist() == [0 if dtype == "int8" else 128] * dim
    else:
        assert set(row.tolist()) == {-128 if dtype == "binary" else 0}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_matrix_and_every_other_value_of_a_vector_are_vectors_too(dtype: Dtype) -> None:
    matrix = _vector(5 * 9).reshape(5, 9)
    for row in matrix:
        assert _bytes(row, 9, dtype).tobytes() == _bytes(row.copy(), 9, dtype).tobytes()
    for column in matrix.T:
        assert _bytes(column, 5, dtype).tobytes() == _bytes(column.copy(), 5, dtype).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_range_of_codes_means_nothing_where_the_model_gives_floats(dtype: Dtype) -> None:
    vector = _vector(9)
    assert _bytes(vector, 7, dtype, known=(-3.0, 5.0)).tobytes() == _bytes(vector, 7, dtype).tobytes()


# ── not finite ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_not_written_in_any_type(dtype: Dtype, normalize: bool, bad: float) -> None:
    for place in range(9):
        vector = _vector(9)
        vector[place] = bad
        with pytest.raises(NotFinite, match="is not finite"):
            _bytes(vector, 9, dtype, normalize)


def test_two_infinities_do_not_cancel_out() -> None:
    with pytest.raises(NotFinite):
        _bytes(np.array([np.inf, -np.inf, np.nan], np.float32), 3, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_lies_beyond_the_dimensions_that_were_asked_for_does_not_count(dtype: Dtype, normalize: bool, bad: float) -> None:
    vector = _vector(9)
    spoiled = vector.copy()
    spoiled[7:] = bad
    assert _bytes(spoiled, 7, dtype, normalize).tobytes() == _bytes(vector, 7, dtype, normalize).tobytes()


@pytest.mark.parametrize(("number", "fits"), [(65504, True), (65519, True), (65520, False), (1e10, False), (3e38, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_beyond_float16_is_refused_unless_it_is_normalised(number: float, fits: bool, sign: int) -> None:
    vector = np.array([1.0, sign * number, 2.0], np.float32)
    if fits:
        assert _row(vector, 3, "float16", normalize=False).tolist() == [1.0, sign * 65504.0, 2.0]
    else:
        with pytest.raises(NotFinite, match="float16: ask for float32, or let it be normalised"):
            _bytes(vector, 3, "float16", normalize=False)
    assert _row(vector, 3, "float16").tolist() == np.array(_values(vector, 3, True)).astype(np.float16).tolist()
    assert _row(vector, 1, "float16", normalize=False).tolist() == [1.0], "the value that does not fit was cut off"


# ── int8 and uint8 ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", DIMS)
def test_int8_is_symmetric_with_one_scale_per_row(dim: int, normalize: bool) -> None:
    for seed in range(20):
        vector = _vector(64, seed) * np.float32(1 + seed)
        values = _values(vector, dim, normalize)
        row = _row(vector, dim, "int8", normalize)
        assert float(row["scale"]) == pytest.approx(max(map(abs, values)) / 127, rel=2**-24)
        assert float(row["shift"]) == 0.0
        assert row["values"].tolist() == [round(x / float(row["scale"])) for x in values]
        assert max(map(abs, row["values"].tolist())) == 127
        assert abs(dequantized(row) - values).max() <= float(row["scale"]) * 0.50001


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", DIMS)
def test_uint8_has_the_codes_of_int8_counted_from_minus_128_and_the_same_values(dim: int, normalize: bool) -> None:
    for seed in range(20):
        vector = _vector(64, seed) * np.float32(1 + seed)
        signed, unsigned = (_row(vector, dim, dtype, normalize) for dtype in CODED)
        assert (unsigned["values"].astype(int) - signed["values"].astype(int)).tolist() == [128] * dim
        assert (unsigned["scale"], unsigned["shift"]) == (signed["scale"], np.float32(-128) * signed["scale"])
        assert dequantized(unsigned) == pytest.approx(dequantized(signed), abs=1e-4 * float(signed["scale"]))


def test_the_largest_value_is_a_whole_number_of_steps_on_either_side() -> None:
    for extreme in (2.0, -2.0):
        row = _row(np.array([extreme, 1.0, -1.0, 0.004], np.float32), 4, "int8", normalize=False)
        assert row["values"].tolist() == [int(math.copysign(127, extreme)), 64, -64, 0]  # 63.5 is rounded to even
        assert dequantized(row)[0] == pytest.approx(extreme, rel=1e-7)


# ── bits ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sentence_transformers(embeddings: NDArray[np.float32], precision: str) -> NDArray[Any]:
    """sentence_transformers.util.quantize_embeddings for these two (v3 to v5), word for word."""
    if precision == "binary":
        return (np.packbits(embeddings > 0).reshape(embeddings.shape[0], -1) - 128).astype(np.int8)
    return np.packbits(embeddings > 0).reshape(embeddings.shape[0], -1)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", DIMS)
def test_bits_are_those_of_sentence_transformers(dtype: Dtype, normalize: bool, dim: int) -> None:
    for seed in range(20):
        vector = np.round(_vector(64, seed), 1)  # zeros of both signs among them
        row = _row(vector, dim, dtype, normalize)
        expected = _sentence_transformers(np.array([_values(vector, dim, normalize)], np.float32), dtype)[0]
        assert (row.dtype, row.tolist()) == (expected.dtype, expected.tolist())


def test_the_first_value_is_the_highest_bit_and_what_a_byte_lacks_is_zero() -> None:
    for numbers, byte in (
        ([1], 0b10000000),
        ([-1, 1], 0b01000000),
        ([0, -0.0, 1e-38], 0b00100000),
        ([1] * 7, 0b11111110),
        ([1] * 8, 0b11111111),
        ([-1] * 8, 0),
    ):
        vector = np.array(numbers, np.float32)
        assert _row(vector, len(numbers), "ubinary").tolist() == [byte]
        assert _row(vector, len(numbers), "binary").tolist() == [byte - 128]
    assert _row(np.array([-1] * 8 + [1], np.float32), 9, "ubinary").tolist() == [0, 0b10000000]


# ── a model that gives uint8 ─────────────────────────────────────────────────────────────────────────────────────────

CODES = np.array([0, 255, 128, 1, 254, 77, 3, 200, 9], np.uint8)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", [1, 3, 7, 9])
def test_codes_of_a_model_are_passed_on_as_they_are_with_what_they_mean(dim: int, normalize: bool) -> None:
    row = _row(CODES, dim, "uint8", normalize, (-0.25, 1.0))
    assert row["values"].tolist() == CODES[:dim].tolist()
    assert float(row["scale"]) == pytest.approx(1.25 / 255, rel=1e-7)
    assert float(row["shift"]) == -0.25
    assert dequantized(row) == pytest.approx([-0.25 + 1.25 * code / 255 for code in CODES.tolist()[:dim]], abs=1e-6)


@pytest.mark.parametrize("dim", [1, 3, 7, 9])
def test_codes_of_an_unknown_range_are_passed_on_and_their_scale_is_no_number(dim: int) -> None:
    row = _row(CODES, dim, "uint8")
    assert row["values"].tolist() == CODES[:dim].tolist()
    assert np.isnan(row["scale"]) and np.isnan(row["shift"])
    assert np.isnan(dequantized(row)).all(), "a made-up range would give numbers that look right"


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "uint8"])
def test_codes_of_an_unknown_range_become_no_other_type(dtype: Dtype) -> None:
    with pytest.raises(NotFinite, match="unknown range: ask for dtype uint8"):
        _bytes(CODES, 9, dtype)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "uint8"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", [1, 3, 7, 9])
def test_codes_of_a_known_range_become_any_type_like_the_values_that_they_mean(dtype: Dtype, normalize: bool, dim: int) -> None:
    low, high = -0.75, 0.5
    meant = [low + code * (high - low) / 255 for code in CODES.tolist()]
    _assert_stands_for(_row(CODES, dim, dtype, normalize, (low, high)), _values(meant, dim, normalize), dtype)


# ── any vector ───────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=600, deadline=None)
@given(
    numbers=st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=70),
    dtype=st.sampled_from(DTYPES),
    normalize=st.booleans(),
    cut=st.integers(0, 69),
)
@example(numbers=[1.401298464324817e-45], dtype="int8", normalize=True, cut=0)
@example(numbers=[1e-39, 6e4], dtype="uint8", normalize=False, cut=0)
@example(numbers=[-0.0, 0.0, -0.0], dtype="binary", normalize=True, cut=1)
def test_any_vector_comes_back_within_what_its_type_can_hold(
    numbers: list[float], dtype: Dtype, normalize: bool, cut: int
) -> None:
    vector = np.array(numbers, np.float32)
    dim = 1 + cut % len(numbers)
    _assert_stands_for(_row(vector, dim, dtype, normalize), _values(vector, dim, normalize), dtype)


@settings(max_examples=300, deadline=None)
@given(
    codes=st.binary(min_size=1, max_size=70),
    low=st.floats(-2, 2, width=32),
    width=st.floats(0.125, 4, width=32),
    dtype=st.sampled_from(DTYPES),
)
def test_any_codes_of_a_known_range_come_back_within_what_the_type_can_hold(
    codes: bytes, low: float, width: float, dtype: Dtype
) -> None:
    known = (low, low + width)
    meant = [low + code * width / 255 for code in codes]
    row = _row(np.frombuffer(codes, np.uint8), len(codes), dtype, False, known)
    if dtype == "uint8":
        assert row["values"].tolist() == list(codes)
        assert dequantized(row) == pytest.approx(meant, abs=1e-6)
    elif dtype not in BITS:  # whether a value of about zero is positive is a matter of rounding
        _assert_stands_for(row, meant, dtype)
