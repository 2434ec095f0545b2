"""Weights are downloaded from strangers: a file of any bytes is either read exactly or refused as a ModelError that names it.
The files are written by hand here, from the format's description and not by the reader's own means.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedpool.errors import ModelError
from embedpool.models.build.safetensors import Weights

FOUR = struct.pack("<4f", 1.0, -2.5, 3e-3, 1e30)
ROW = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def _bytes(header: Any, data: bytes = FOUR) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _file(folder: Path, header: Any, data: bytes = FOUR) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(_bytes(header, data))
    return path


def _one(folder: Path, dtype: str, shape: list[int], data: bytes) -> NDArray[np.float32]:
    """The values of a file's one tensor, whose bytes are `data`."""
    path = _file(folder, {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}, data)
    found = Weights((path,))["x"]
    assert found.dtype == np.float32
    assert found.shape == tuple(shape)
    return found


def _same(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    """The same bits, but for those of values that are not numbers."""
    number = ~np.isnan(wanted)
    assert np.array_equal(np.isnan(found), ~number)
    assert found[number].tobytes() == wanted[number].tobytes()


def _x(path: Path) -> NDArray[np.float32]:
    return Weights((path,))["x"]


def _refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        _x(path)
    for word in (str(path), *words):
        assert word in caught.value.message


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_float32_is_given_bit_for_bit(tmp_path: Path) -> None:
    values = np.array([[0.0, -0.0, 1.5], [np.inf, np.nan, 1e-45]], "<f4")
    assert _one(tmp_path, "F32", [2, 3], values.tobytes()).tobytes() == values.tobytes()


def test_every_float16_has_its_value(tmp_path: Path) -> None:
    patterns = np.arange(2**16, dtype="<u2").tobytes()
    wanted = np.array([struct.unpack("<e", patterns[i : i + 2])[0] for i in range(0, len(patterns), 2)], np.float32)
    _same(_one(tmp_path, "F16", [256, 256], patterns).ravel(), wanted)


def test_every_bfloat16_has_its_value(tmp_path: Path) -> None:
    patterns = np.arange(2**16, dtype="<u2").tobytes()
    wanted = [struct.unpack("<f", b"\0\0" + patterns[i : i + 2])[0] for i in range(0, len(patterns), 2)]
    _same(_one(tmp_path, "BF16", [65536], patterns), np.array(wanted, np.float32))


def test_float64_is_rounded_to_the_nearest_float32(tmp_path: Path) -> None:
    values = np.array([1 / 3, -0.0, 1 + 2**-24, 1 + 3 * 2**-24, 1e-300, np.inf], "<f8")
    wanted = np.array([0.3333333432674408, -0.0, 1.0, 1 + 2**-22, 0.0, np.inf], np.float32)
    assert _one(tmp_path, "F64", [6], values.tobytes()).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_a_tensor_without_dimensions_is_one_value(tmp_path: Path, dtype: str) -> None:
    two = {"F32": "00000040", "F16": "0040", "BF16": "0040", "F64": "0000000000000040"}[dtype]
    assert _one(tmp_path, dtype, [], bytes.fromhex(two)) == 2.0


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("shape", [[0], [3, 0], [0, 4, 2]])
def test_a_tensor_without_values_is_read(tmp_path: Path, dtype: str, shape: list[int]) -> None:
    assert _one(tmp_path, dtype, shape, b"").size == 0


@pytest.mark.parametrize("padding", range(5))
def test_tensors_lie_wherever_the_header_puts_them(tmp_path: Path, padding: int) -> None:
    header = {
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
        "a": {"dtype": "F32", "shape": [3, 1], "data_offsets": [0, 12]},
        "__metadata__": {"format": "pt", "a": "nothing"},
        "ω.weight": {"dtype": "F16", "shape": [1], "data_offsets": [16, 18]},
    }
    path = _file(tmp_path, json.dumps(header, ensure_ascii=False).encode() + b" " * padding, FOUR + b"\x00\x3c")
    weights = Weights((path,))
    assert weights["a"].tolist() == [[1.0], [-2.5], [np.float32(3e-3)]]
    assert weights["b"].tolist() == [np.float32(1e30)]
    assert weights["ω.weight"].tolist() == [1.0]
    assert not weights.has("__metadata__")


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prefix", ["", "model.", "bert.", "roberta.", "0.auto_model."])
def test_a_tensor_is_found_under_the_name_of_its_body_or_of_a_model_with_a_head(tmp_path: Path, prefix: str) -> None:
    weights = Weights((_file(tmp_path, {prefix + "embed.weight": ROW}),))
    assert [weights.has(name) for name in ("embed.weight", "embed", "other.embed.weight")] == [True, False, False]
    assert weights["embed.weight"].shape == (2, 2)


def test_a_name_as_it_is_comes_before_one_with_a_prefix(tmp_path: Path) -> None:
    header = {
        "model.x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
    }
    weights = Weights((_file(tmp_path, header),))
    assert weights["x"].tolist() == [-2.5]
    assert weights.unread() == ["model.x"]


def test_what_nobody_asked_for_is_told_whole_and_in_order(tmp_path: Path) -> None:
    places = {"c": [0, 4], "model.a": [4, 8], "b": [8, 16]}
    rows = {name: {"dtype": "F32", "shape": [(end - at) // 4], "data_offsets": [at, end]} for name, (at, end) in places.items()}
    weights = Weights((_file(tmp_path, rows),))
    assert weights.unread() == ["b", "c", "model.a"]
    assert weights.has("b")  # which is not to read it
    assert weights["a"].shape == weights["a"].shape
    assert weights.unread() == ["b", "c"]


def test_tensors_of_several_files_are_one_set(tmp_path: Path) -> None:
    paths = []
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        paths.append(_file(tmp_path / name, {name: ROW}, struct.pack("<4f", *[i] * 4)))
    weights = Weights(tuple(paths))
    assert [weights["a"][0, 0], weights["b"][0, 0]] == [0.0, 1.0]


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    _refused(_file(tmp_path, {"y": ROW}), "no tensor x")


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x08",
        b"\x08\0\0\0\0\0\0",
        b"\x01\0\0\0\0\0\0\0",
        (2**63).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        (3).to_bytes(8, "little") + b"{}",
        b"<!DOCTYPE html><html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 90868376\n",
    ],
    ids=repr,
)
def test_a_file_of_another_kind_or_cut_off_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(raw)
    _refused(tmp_path / "model.safetensors", "not a safetensors file, or was not downloaded whole")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "missing.safetensors", "cannot be read")
    (tmp_path / "model.safetensors").mkdir()
    _refused(tmp_path / "model.safetensors", "cannot be read")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"not json",
        b"\xff\xfe\xfd",
        b"{} {}",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"[" * 3000,  # deeper than Python's stack
        b'{"x":' * 3000,
        b'{"x": ' + b"1" * 5000 + b"}",  # more digits than Python takes for a number
        {"x": 1},
        {"x": None},
        {"x": []},
        {"x": "F32"},
        {"x": {}},
        {"x": {"dtype": "F32", "shape": [2, 2]}},
        {"x": {"dtype": "F32", "data_offsets": [0, 16]}},
        {"x": {"shape": [2, 2], "data_offsets": [0, 16]}},
    ],
    ids=lambda header: str(header)[:40],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: Any) -> None:
    _refused(_file(tmp_path, header))


@pytest.mark.parametrize(
    "changed",
    [
        {"data_offsets": [0]},
        {"data_offsets": [0, 16, 16]},
        {"data_offsets": 16},
        {"data_offsets": None},
        {"data_offsets": ["a", "b"]},
        {"data_offsets": [None, 16]},
        {"data_offsets": [0, 17]},  # beyond the end
        {"data_offsets": [1, 17]},
        {"data_offsets": [2**40, 2**40 + 16]},
        {"data_offsets": [2**70, 2**70 + 16]},
        {"data_offsets": [16, 0]},  # ends before it begins
        {"data_offsets": [-16, 0]},  # in the header
        {"data_offsets": [-8, 8]},
        {"data_offsets": [-(2**70), 16]},
        {"data_offsets": [0, float("inf")]},
        {"data_offsets": [float("nan"), 16]},
        {"shape": [2, 3]},
        {"shape": [4, 4]},
        {"shape": [1]},
        {"shape": []},
        {"shape": [0]},
        {"shape": [-2, -2]},
        {"shape": [-1, -4]},
        {"shape": [-4]},
        {"shape": [2, -1]},
        {"shape": [2**32, 2**32], "data_offsets": [0, 0]},  # 2**64 values, which is 0 in 64 bits
        {"shape": [2**62 + 1, 4]},  # 4 in 64 bits
        {"shape": [2**70]},
        {"shape": [float("inf")]},
        {"shape": [float("nan")]},
        {"shape": ["two", 2]},
        {"shape": [[2], 2]},
        {"shape": None},
        {"shape": 4},
        {"dtype": "F16"},
        {"dtype": "F64"},
        {"dtype": None},
        {"dtype": ["F32"]},
        {"dtype": "f32"},
        {"dtype": ""},
    ],
    ids=str,
)
def test_a_tensor_whose_numbers_do_not_fit_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    _refused(_file(tmp_path, {"x": ROW | changed}))


@pytest.mark.parametrize("dtype", ["I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"])
def test_weights_of_a_type_that_is_not_known_are_refused_when_they_are_asked_for(tmp_path: Path, dtype: str) -> None:
    path = _file(tmp_path, {"x": ROW | {"dtype": dtype}, "y": ROW})
    assert Weights((path,))["y"].shape == (2, 2)
    _refused(path, dtype, "BF16")


@pytest.mark.parametrize("cut", [1, 4, 15, 16])
def test_a_file_that_lacks_its_last_bytes_is_refused_before_anything_is_read(tmp_path: Path, cut: int) -> None:
    path = _file(tmp_path, {"y": ROW | {"shape": [1], "data_offsets": [0, 4]}, "x": ROW})
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelError, match="not downloaded whole"):
        Weights((path,))


# ── any bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "model.safetensors"


def _names(error: ModelError, path: Path) -> None:
    assert str(path) in error.message


def _read_or_refused(path: Path, raw: bytes) -> int:
    """How many tensors were read; a refusal names the file."""
    path.write_bytes(raw)
    try:
        weights = Weights((path,))
    except ModelError as error:
        _names(error, path)
        return 0
    read = 0
    for name in weights.unread():
        try:
            found = weights[name]
        except ModelError as error:
            _names(error, path)
        else:
            assert found.dtype == np.float32
            assert found.nbytes <= 2 * len(raw)
            read += 1
    return read


VALID = _bytes(
    {
        "x": ROW,
        "layers.0.weight": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [16, 20]},
        "__metadata__": {"format": "pt"},
        "bias": {"dtype": "F16", "shape": [2], "data_offsets": [20, 24]},
    },
    FOUR + b"12345678",
)
HEADER = 8 + int.from_bytes(VALID[:8], "little")
# (place, bytes that are taken away there, bytes that are put there)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, HEADER), st.integers(0, 3), st.one_of(st.binary(max_size=3), st.sampled_from(list(b'-09e".[]{},:')))
    ),
    min_size=1,
    max_size=4,
)


def test_the_file_that_is_changed_below_is_read_whole(place: Path) -> None:
    assert _read_or_refused(place, VALID) == 3


@given(changes=CHANGES)
@settings(max_examples=500, deadline=None)
def test_a_file_with_changed_bytes_is_read_or_refused(place: Path, changes: list[tuple[int, int, bytes | int]]) -> None:
    raw = VALID
    for at, less, more in changes:
        raw = raw[:at] + (more if isinstance(more, bytes) else bytes([more])) + raw[at + less :]
    _read_or_refused(place, raw)


NUMBERS = st.one_of(
    st.integers(-20, 40),
    st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 2**64 + 4, -(2**63), 1.5, float("inf"), float("nan")]),
)
VALUES = st.one_of(NUMBERS, st.none(), st.booleans(), st.text(max_size=3), st.lists(NUMBERS, max_size=4))


@given(
    dtype=st.one_of(st.sampled_from(["F32", "F16", "BF16", "F64", "I64"]), VALUES),
    shape=st.one_of(st.lists(NUMBERS, max_size=4), VALUES),
    offsets=st.one_of(st.tuples(NUMBERS, NUMBERS), VALUES),
)
@settings(max_examples=500, deadline=None)
def test_a_header_of_any_values_is_read_or_refused(place: Path, dtype: Any, shape: Any, offsets: Any) -> None:
    header = {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}
    if _read_or_refused(place, _bytes(header, bytes(40))):
        begin, end = offsets
        assert 0 <= begin <= end <= 40, "bytes that are not the tensor's were read"


@pytest.mark.parametrize("length", list(range(0, len(VALID), 7)))
def test_a_file_cut_anywhere_is_refused(place: Path, length: int) -> None:
    assert _read_or_refused(place, VALID[:length]) == 0
