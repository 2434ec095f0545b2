"""What a peer can send is any bytes at all, and nothing behind `decode` checks a type again. So messages are made from their
own type descriptions, sent as they are and damaged in every way that came to mind, and the result must be a message within
its bounds or the protocol error.

EMBEDPOOL_FUZZ is the number of examples of the three tests with random input: a million can be run by hand.
"""

from __future__ import annotations

import math
import os
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect
from msgspec.structs import astuple, replace

from embedpool import protocol as wire
from embedpool.client.strings import check_texts
from embedpool.errors import BadText, ProtocolError, VersionMismatch
from embedpool.protocol import MAX_I64, VERSION, Embed, Hello, Refused, decode, encode

_CLASSES: tuple[type[Any], ...] = get_args(wire.Message)
_FUZZ = settings(
    max_examples=int(os.environ.get("EMBEDPOOL_FUZZ", "3000")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_ASK = {"kind": "embed", "id": 7, "texts": ["a", "b"]}

# ── messages as their types describe them ────────────────────────────────────────────────────────────────────────────


def _values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values within the stated type and bounds."""
    match kind:
        case inspect.IntType():
            low, high = -(2**63) if kind.ge is None else kind.ge, 2**64 - 1 if kind.le is None else kind.le
            return st.sampled_from([low, high]) | st.integers(low, min(high, 300)) | st.integers(low, high)
        case inspect.FloatType():
            return st.floats(kind.ge, kind.le, allow_nan=False)
        case inspect.StrType():
            return st.text(max_size=min(kind.max_length or 30, 30))
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.UnionType():
            return st.one_of([_values(each) for each in kind.types])
        case inspect.VarTupleType():
            return st.lists(_values(kind.item_type), max_size=3).map(tuple)
        case inspect.StructType():
            return st.builds(kind.cls, **{field.name: _values(field.type) for field in kind.fields})
    raise AssertionError(f"no values for {kind}")


_MESSAGES = {kind: _values(inspect.type_info(kind)) for kind in _CLASSES}
_MESSAGES[Hello] = _MESSAGES[Hello].map(lambda hello: replace(hello, version=VERSION))
_ANY_MESSAGE = st.one_of(list(_MESSAGES.values()))

_SCALARS = (
    st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([None, True, False, -1, 0, MAX_I64, MAX_I64 + 1, 2**64 - 1, math.nan, math.inf, -math.inf, -0.5, 1e300])
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from([msgpack.ExtType(5, b"ab"), msgpack.Timestamp(1, 5), "x" * 5000])
)
_JUNK = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3),
    max_leaves=8,
)


def _paths(value: Any, so_far: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in place of something else: every key of every map, every index of every list."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [path for key in keys for path in ((*so_far, key), *_paths(value[key], (*so_far, key)))]


@st.composite
def _wrong_fields(draw: st.DrawFn) -> bytes:
    """A valid message in which some fields were replaced, left out or added."""
    fields = msgpack.unpackb(encode(draw(_ANY_MESSAGE)))
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([*_paths(fields), ("id",), ("texts",), ("new",)]))
        place = fields
        for key in above:
            place = place[key]
        if draw(st.booleans()) or last not in place:
            place[last] = draw(_JUNK)
        else:
            place.pop(last)
    packed: bytes = msgpack.packb(fields)
    return packed


@st.composite
def _wrong_bytes(draw: st.DrawFn) -> bytes:
    """A valid message's frame in which bytes were flipped, cut off, put in or repeated."""
    frame = bytearray(encode(draw(_ANY_MESSAGE)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(frame) - 1, 0)))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "repeat"])):
            case "flip" if frame:
                frame[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if frame:
                frame[at] = draw(st.sampled_from([0x00, 0x7F, 0x80, 0xC0, 0xC1, 0xCB, 0xCF, 0xD3, 0xDB, 0xDD, 0xDF, 0xFF]))
            case "cut":
                del frame[at:]
            case "insert":
                frame[at:at] = draw(st.binary(min_size=1, max_size=9))
            case _:
                frame += frame[at:]
    return bytes(frame)


def _decodes_or_is_refused(frame: bytes) -> None:
    """Whatever comes out can go on: a message can be sent again as it is, an error can be answered."""
    try:
        message = decode(frame)
    except ProtocolError as error:
        answer = Refused(error.request, error.code, error.message, row=error.row)
        assert decode(encode(answer)) == answer
    else:
        assert type(message) in _CLASSES
        assert decode(encode(message)) == message  # NaN would not be equal


# ── any bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", _CLASSES, ids=lambda kind: kind.__name__)
def test_a_message_comes_out_as_it_went_in(kind: type[Any]) -> None:
    @given(_MESSAGES[kind])
    @settings(max_examples=60, deadline=None, database=None)
    def check(message: Any) -> None:
        assert type(decode(encode(message))) is kind
        assert decode(encode(message)) == message

    check()


@_FUZZ
@given(st.binary(max_size=80) | st.builds(bytes.__add__, st.just(b"\x82\xa4kind\xa4ping\xa2id"), st.binary(max_size=20)))
def test_random_bytes_are_a_message_or_the_protocol_error(frame: bytes) -> None:
    _decodes_or_is_refused(frame)


@_FUZZ
@given(_wrong_bytes())
def test_a_damaged_frame_is_a_message_or_the_protocol_error(frame: bytes) -> None:
    _decodes_or_is_refused(frame)


@_FUZZ
@given(_wrong_fields())
def test_a_message_with_wrong_fields_is_a_message_or_the_protocol_error(frame: bytes) -> None:
    _decodes_or_is_refused(frame)


_HURTFUL = {
    "lists in lists": b"\x91" * 100_000,
    "maps in maps": b"\x81\xa4kind" * 10_000,
    "a list of four billion": b"\xdd\xff\xff\xff\xff",
    "a list as a key": b"\x81\x90\x01",
    "no map": msgpack.packb([1, 2]),
    "two messages": encode(wire.Ping(1)) * 2,
}


@pytest.mark.parametrize("what", _HURTFUL)
def test_a_frame_made_to_hurt_is_refused(what: str) -> None:
    with pytest.raises(ProtocolError):
        decode(_HURTFUL[what])


# ── what is wrong is said ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("version", [0, VERSION + 1, MAX_I64])
def test_a_hello_of_another_version_is_told_so_even_if_its_fields_changed(version: int) -> None:
    for frame in (encode(Hello(version)), msgpack.packb({"kind": "hello", "version": version, "segment_bytes": "16M"})):
        with pytest.raises(VersionMismatch, match=f"version {VERSION}, not {version}"):
            decode(frame)


_WRONG: dict[str, list[Any]] = {
    "kind": ["dance", 5, None, ""],
    "id": [True, -1, MAX_I64 + 1, 7.0, "7", None],
    "offset": [True, -4, MAX_I64 + 1, "0"],
    "dim": [False, -1, (1 << 20) + 1, 8.0, None],
    "budget_ms": [True, math.nan, math.inf, -1.0, 1e9, None],
    "normalize": [0, 1, "true", None],
    "priority": ["urgent", "", None, 0],
    "model": ["m" * 513, 5, b"m", None],
    "truncate": [0, 1, "middle", "", None, "true"],
    "dtype": ["float64", "f4", "", 8, None],
    "prompt_name": ["p" * 513, 5, b"p"],
    "prompt": [5, b"Q: ", ["Q: "], True],
    "titles": ["one string", [1], ["a", None], [b"bytes"], {}, None],
    "texts": ["one string", [1], ["a", None], [b"bytes"], [["a"]], {}, None],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in _WRONG.items() for value in values])
def test_a_field_of_a_wrong_type_or_beyond_its_bounds_is_refused(field: str, value: Any) -> None:
    assert decode(msgpack.packb(_ASK)) == Embed(7, ("a", "b"))
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb(_ASK | {field: value}))
    assert caught.value.request == (None if field == "id" else 7), "the id is what its one answer needs"


@pytest.mark.parametrize("bad", [b"\xff", b"ab\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"])
@pytest.mark.parametrize("row", [0, 2])
def test_a_text_that_is_not_utf8_is_named_by_its_row(bad: bytes, row: int) -> None:
    texts: list[str | bytes] = ["a", "b", "c"]
    texts[row] = bad
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb(_ASK | {"texts": texts}, use_bin_type=False))
    assert (caught.value.request, caught.value.row) == (7, row)


@pytest.mark.parametrize("id", [0, 7, MAX_I64])
def test_the_id_is_read_even_before_a_text_that_is_too_long_to_be_read_again(id: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb({"kind": "embed", "id": id, "texts": ["x" * 1_000_000, 5]}))
    assert caught.value.request == id


@pytest.mark.parametrize("truncate", [True, False, "left", "right"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_a_client_in_another_language_may_say_how_its_vectors_should_be(truncate: Any, dtype: Any) -> None:
    said = {"truncate": truncate, "dtype": dtype, "prompt": "Q: ", "titles": ["one", "two"]}
    found = decode(msgpack.packb(_ASK | said))
    assert found == Embed(7, ("a", "b"), truncate=truncate, dtype=dtype, prompt="Q: ", titles=("one", "two"))
    assert isinstance(found, Embed)
    assert type(found.truncate) is type(truncate)


def test_more_titles_than_one_message_may_carry_are_refused_before_they_are_read() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb(_ASK | {"titles": [""] * (wire.MAX_TEXTS + 1)}))
    assert caught.value.request == 7


@pytest.mark.parametrize("field", ["titles", "prompt", "prompt_name"])
def test_what_stands_before_a_text_must_be_utf8_too(field: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb(_ASK | {field: ["\udcff"] if field == "titles" else "\udcff"}, unicode_errors="surrogateescape"))
    assert (caught.value.request, caught.value.row) == (7, None), "no text is at fault"


def test_unknown_fields_are_ignored_and_a_budget_may_be_a_whole_number() -> None:
    assert decode(msgpack.packb(_ASK | {"colour": {"deep": [1, None]}, "z": 2.5})) == Embed(7, ("a", "b"))
    assert decode(msgpack.packb(_ASK | {"budget_ms": 250})) == Embed(7, ("a", "b"), budget_ms=250.0)


def test_what_is_left_out_has_the_value_that_the_wire_promises() -> None:
    assert astuple(decode(msgpack.packb(_ASK))) == (
        *(7, ("a", "b"), None, 30_000.0, "", None, 0, True, True, "auto"),
        *("float32", None, (), 0.0, "", ""),
    )
    card = {"name": "m", "dim": 4, "max_tokens": 9, "fingerprint": "f"}
    welcome = {"kind": "welcome", "version": 1, "limits": dict.fromkeys(wire.Limits.__struct_fields__, 1), "models": [card]}
    message = decode(msgpack.packb(welcome))
    assert isinstance(message, wire.Welcome)
    every = ("float32", "float16", "int8", "uint8", "binary", "ubinary")
    assert astuple(message.models[0]) == ("m", 4, 9, "f", (), every, (), "fp32", "", "")
    part: dict[str, Any] = {"segment": "", "segment_bytes": 0, "offset": 0, "dim": 4, "rows": [0], "texts": ["a"]}
    part |= {"prompt_name": None, "normalize": True, "truncate": "left"}
    job = decode(msgpack.packb({"kind": "job", "id": 1, "parts": [part]}))
    assert isinstance(job, wire.Job)
    assert astuple(job.parts[0])[6:] == (None, True, "left", "float32", None, ())
    assert astuple(decode(msgpack.packb({"kind": "hello", "version": VERSION}))) == (VERSION, 0, "")
    refused = {"kind": "refused", "id": None, "code": "c", "message": "m"}
    assert astuple(decode(msgpack.packb(refused))) == (None, "c", "m", False, None, None)
    assert all(kind.__struct_config__.frozen for kind in _CLASSES)


@pytest.mark.parametrize(("texts", "row"), [([1], 0), (["a", None], 1), (["a", "b", b"c"], 2), (["é", "\ud800"], 1)])
def test_check_texts_names_the_first_row_that_is_no_text(texts: list[Any], row: int) -> None:
    with pytest.raises(BadText, match=f"text {row} ") as caught:
        check_texts([*texts, 5])
    assert caught.value.row == row
