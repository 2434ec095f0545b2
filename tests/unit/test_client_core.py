"""What a client says and understands, without a socket: sessions, rooms, answers, and what a new router changes."""

from __future__ import annotations

import gc
import struct
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from embedpool import dequantized, errors
from embedpool import protocol as wire
from embedpool.client.core import ClientCore, Options, Ticket
from embedpool.client.documents import CHUNK_ROWS, DEFAULTS, Assembly, options_of
from embedpool.protocol import Embed, Hello, Limits, ModelCard
from embedpool.shm.layout import DTYPES, Dtype, aligned, room_bytes

CARD = ModelCard("model", 4, 512, "one", ("query",))
LIMITS = Limits(100, 10_000, 1000, 10_000)
OPTIONS = Options()


class Memory:
    """A mapping without a file. Row r of a room holds whatever a test writes there."""

    def __init__(self, path: str, size: int) -> None:
        if path == "/gone":
            raise errors.SegmentError("the session's segment cannot be opened: gone")
        self.size = size
        self.memory = bytearray(size)
        self.values = np.frombuffer(self.memory, np.float32)
        self.closed = False

    def room(self, offset: int, n: int) -> NDArray[np.uint8]:
        # As with a real mapping, what owns the bytes is no array: numpy's chain of bases ends at the array given here.
        return np.frombuffer(memoryview(self.memory).toreadonly(), np.uint8, n, offset)

    def close(self) -> None:
        self.closed = True


def client(size: int = 4096, expected: str = "") -> tuple[ClientCore, list[Memory]]:
    """A core that has not said hello, and the list of what it maps."""
    maps: list[Memory] = []

    def make(path: str, size: int) -> Memory:
        maps.append(Memory(path, size))
        return maps[-1]

    return ClientCore(make, size, "test", expected), maps


def opened(size: int = 4096, expected: str = "") -> tuple[ClientCore, list[Memory]]:
    core, maps = client(size, expected)
    assert isinstance(said(core, wire.Who(7))[0], Hello)
    assert said(core, welcome(size)) == []
    return core, maps


def welcome(size: int = 4096, path: str = "/segment", card: ModelCard = CARD) -> wire.Welcome:
    return wire.Welcome(wire.VERSION, LIMITS, (card,), path if size else "", size)


def said(core: ClientCore, message: wire.Message, payload: bytes = b"", now: float = 0.0) -> list[wire.Message]:
    return [wire.decode(frame) for frame in core.received(wire.encode(message), payload, now)]


def asked(
    core: ClientCore, texts: Sequence[str], now: float = 0.0, options: Options = OPTIONS, place: Any = None
) -> tuple[Ticket, Embed | None]:
    ticket, frames = core.ask(texts, options, now + 10.0, now, place)
    messages = [wire.decode(frame) for frame in frames]
    assert all(isinstance(message, Embed) for message in messages)
    return ticket, messages[0] if messages else None  # type: ignore[return-value]


def answer(id: int, rows: int, dim: int = 4) -> wire.Vectors:
    return wire.Vectors(id, rows, dim, 3, "one")


def test_hello_is_said_once_per_router() -> None:
    core, _ = client()
    assert len(said(core, wire.Who(7))) == 1
    assert said(core, wire.Who(7)) == []
    assert len(said(core, wire.Who(8))) == 1


def test_an_answer_is_a_view_of_the_room_that_was_asked_for() -> None:
    core, maps = opened()
    ticket, frames = core.ask(["a", "b"], OPTIONS, 10.0, 0.0)
    message = wire.decode(frames[0])
    assert isinstance(message, Embed)
    assert message.offset is not None
    maps[0].values[message.offset // 4 : message.offset // 4 + 8] = np.arange(8)
    said(core, answer(ticket.id, 2))
    assert isinstance(ticket.result, np.ndarray)
    assert ticket.result.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_room_is_not_given_again_before_its_answer_however_long_its_caller_has_gone() -> None:
    core, _ = opened(256)
    ticket, frames = core.ask(["a"] * 8, OPTIONS, 10.0, 0.0)  # 128 bytes
    first = wire.decode(frames[0])
    core.abandon(ticket)
    assert isinstance(first, Embed)
    _, second = asked(core, ["b"] * 8)
    assert second is not None
    assert second.offset != first.offset
    _, third = asked(core, ["c"] * 8)
    assert third is not None
    assert third.offset is None, "a third room of 128 in 256 bytes"
    said(core, wire.Refused(ticket.id, "cancelled", "cancelled"))
    del ticket
    gc.collect()
    _, fourth = asked(core, ["d"] * 8)
    assert fourth is not None
    assert fourth.offset == first.offset


def test_between_two_sessions_nothing_is_sent_and_the_welcome_sends_it_all() -> None:
    core, _ = opened()
    held, _ = asked(core, ["held"])
    said(core, answer(held.id, 1))
    one, before = asked(core, ["one"])
    assert before is not None
    assert isinstance(said(core, wire.Who(8))[0], Hello)
    two, frame = asked(core, ["two"])
    assert frame is None, "it would name a room of the old segment"
    again = said(core, welcome(path="/new"))
    assert [(m.id, m.texts) for m in again if isinstance(m, Embed)] == [(one.id, ("one",)), (two.id, ("two",))]
    offsets = [m.offset for m in again if isinstance(m, Embed)]
    assert len(set(offsets)) == 2


def test_what_nobody_waits_for_is_not_asked_again() -> None:
    core, _ = opened()
    ticket, _ = core.ask(["one"], OPTIONS, 10.0, 0.0)
    core.abandon(ticket)
    said(core, wire.Who(8))
    assert said(core, welcome()) == []
    assert core.tickets == {}


def test_a_pool_that_comes_back_with_another_dimension_gets_rooms_of_that_size() -> None:
    core, _ = opened()
    ticket, _ = asked(core, ["one"])
    said(core, wire.Who(8))
    (again,) = said(core, welcome(card=ModelCard("model", 32, 512, "two")))
    assert isinstance(again, Embed)
    assert core.arena is not None
    assert core.arena.taken_bytes == 128
    said(core, wire.Vectors(ticket.id, 1, 32, 3, "two"))
    assert isinstance(ticket.result, np.ndarray)
    assert ticket.result.shape == (1, 32)
    assert ticket.answer().fingerprint == "two"


def test_an_array_of_the_old_session_outlives_it() -> None:
    core, maps = opened()
    ticket, _ = core.ask(["one"], OPTIONS, 10.0, 0.0)
    maps[0].values[:4] = 5.0
    said(core, answer(ticket.id, 1))
    said(core, wire.Who(8))
    said(core, welcome())
    assert maps[0].closed
    assert isinstance(ticket.result, np.ndarray)
    assert ticket.result.tolist() == [[5, 5, 5, 5]]


def test_a_segment_that_cannot_be_mapped_means_inline_vectors_and_a_warning() -> None:
    core, _ = client()
    said(core, wire.Who(7))
    (hello,) = said(core, welcome(path="/gone"))
    assert isinstance(hello, Hello)
    assert hello.segment_bytes == 0
    said(core, welcome(0))
    assert core.is_open
    assert "inline" in core.warning
    ticket, frames = core.ask(["one"], OPTIONS, 10.0, 0.0)
    message = wire.decode(frames[0])
    assert isinstance(message, Embed)
    assert message.offset is None
    said(core, wire.Vectors(ticket.id, 1, 4, 3, "one", True), np.arange(4, dtype=np.float32).tobytes())
    assert isinstance(ticket.result, np.ndarray)
    assert ticket.result.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (wire.Vectors(1, 2, 4, 3, "one"), b""),
        (wire.Vectors(1, 1, 5, 3, "one"), b""),
        (wire.Vectors(1, 1, 4, 3, "one", True), b""),
    ],
)
def test_an_answer_of_another_shape_is_an_error_not_an_array(message: wire.Vectors, payload: bytes) -> None:
    core, _ = opened()
    ticket, _ = core.ask(["one"], OPTIONS, 10.0, 0.0)
    said(core, message, payload)
    assert isinstance(ticket.result, errors.ProtocolError)


def test_a_refusal_becomes_the_exception_of_its_code() -> None:
    core, _ = opened()
    ticket, _ = core.ask(["one", "two"], OPTIONS, 10.0, 0.0)
    said(core, wire.Refused(ticket.id, "too_long", "text 1 is too long", row=1))
    assert isinstance(ticket.result, errors.TextTooLong)
    assert ticket.result.row == 1


def test_answers_to_nobody_are_ignored() -> None:
    core, _ = opened()
    assert said(core, answer(999, 1)) == []
    assert said(core, wire.Refused(999, "expired", "late")) == []
    assert said(core, wire.Refused(None, "bad_message", "something else")) == []


def test_children_of_str_are_texts_and_one_string_is_not_a_list() -> None:
    core, _ = opened()
    _, message = asked(core, list(np.array(["a", "b"])))
    assert message is not None
    assert message.texts == ("a", "b")
    with pytest.raises(errors.BadRequest, match="list of strings"):
        core.ask("abc", OPTIONS, 10.0, 0.0)


def test_a_budget_beyond_a_day_is_a_day() -> None:
    core, _ = opened()
    _, frames = core.ask(["a"], OPTIONS, float("inf"), 0.0)
    message = wire.decode(frames[0])
    assert isinstance(message, Embed)
    assert message.budget_ms == wire.MAX_BUDGET_MS


def test_silence_counts_from_the_first_open_request() -> None:
    core, _ = opened()
    asked(core, ["a"], now=100.0)
    assert core.heard_at == 100.0
    asked(core, ["b"], now=101.0)
    assert core.heard_at == 100.0


def test_a_chunk_that_was_refused_behind_others_gets_its_whole_time_when_it_is_the_oldest() -> None:
    texts = tuple(f"text {i}" for i in range(300))
    assembly = Assembly(texts, OPTIONS, 4, None, LIMITS, False)
    chunk = assembly.next_chunk()
    assert chunk is not None
    refused = errors.Overloaded("full", retry_after_ms=400)
    assert assembly.again(chunk, refused, 100.0, 60.0) == 0.4
    assert chunk.give_up_at == 160.0
    assert assembly.again(chunk, errors.Overloaded("full", retry_after_ms=50_000), 110.0, 60.0) == 1.0
    assert assembly.again(chunk, refused, 159.7, 60.0) is None


def test_chunks_cover_every_text_once_and_stay_within_the_pools_limit() -> None:
    texts = tuple("x" * (i % 50) for i in range(1000))
    assembly = Assembly(texts, OPTIONS, 4, None, LIMITS, False)
    found: list[str] = []
    while (chunk := assembly.next_chunk()) is not None:
        assert chunk.start == len(found)
        assert 0 < len(chunk.texts) <= LIMITS.request_rows
        found += chunk.texts
    assert tuple(found) == texts


# ── which model ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_of_another_fingerprint_is_left_and_the_reason_is_kept_for_whoever_asks() -> None:
    core, maps = client(expected="two")
    said(core, wire.Who(7))
    assert said(core, welcome()) == [wire.Bye()]
    assert (core.is_open, core.arena, maps) == (False, None, []), "no session, so nothing of it is used"
    assert isinstance(core.refused_hello, errors.WrongFingerprint)
    assert "fingerprint two" in core.refused_hello.message
    assert "model with one" in core.refused_hello.message


def test_every_request_that_is_open_when_a_pool_of_another_fingerprint_comes_back_is_told_so() -> None:
    core, maps = opened(expected="one")
    sent, _ = asked(core, ["sent"])
    status, _ = core.ask_status(10.0, 0.0)
    said(core, wire.Who(8))
    between, frame = asked(core, ["between"])
    assert frame is None
    assert said(core, welcome(path="/new", card=ModelCard("other", 4, 512, "two"))) == [wire.Bye()]
    assert all(isinstance(ticket.result, errors.WrongFingerprint) for ticket in (sent, status, between))
    assert core.tickets == {}
    assert (len(maps), maps[0].closed, core.arena, core.is_open) == (1, True, None, False)


def test_a_wrong_fingerprint_is_said_at_every_attempt_and_the_right_one_ends_it() -> None:
    core, _ = opened(expected="one")
    wrong = welcome(card=ModelCard("model", 4, 512, "two"))
    for router in (8, 9, 9):  # another router, and the same one again: it was told bye
        core.refused_hello = None
        assert isinstance(said(core, wire.Who(router))[0], Hello)
        late, _ = asked(core, ["late"])
        said(core, wrong)
        assert isinstance(late.result, errors.WrongFingerprint)
        assert isinstance(core.refused_hello, errors.WrongFingerprint)
    assert isinstance(said(core, wire.Who(10))[0], Hello)
    waiting, _ = asked(core, ["waiting"])
    assert [message.id for message in said(core, welcome()) if isinstance(message, Embed)] == [waiting.id]
    assert core.is_open
    assert core.refused_hello is None
    said(core, answer(waiting.id, 1))
    assert isinstance(waiting.result, np.ndarray)


def test_a_fingerprint_that_any_of_the_pools_models_has_is_there() -> None:
    core, _ = client(expected="three")
    said(core, wire.Who(7))
    cards = (CARD, ModelCard("other", 8, 512, "three"))
    assert said(core, wire.Welcome(wire.VERSION, LIMITS, cards, "/segment", 4096)) == []
    assert core.is_open


# ── options and types ────────────────────────────────────────────────────────────────────────────────────────────────

TITLED = Options(
    prompt_name="query", dim=2, normalize=False, truncate="left", priority="bulk", dtype="int8", titles=("one", "two")
)


def code(row: int) -> bytes:
    """A row of two values of dtype "int8", filled up to twelve bytes; a row of float32 would have eight."""
    return struct.pack("<ff2b2x", row + 0.5, 0.0, -row, row)


def fill(memory: Memory, message: Embed) -> None:
    """Does a worker's part: each text is the number that its row is made of."""
    assert message.offset is not None
    for i, text in enumerate(message.texts):
        memory.memory[message.offset + 12 * i : message.offset + 12 * (i + 1)] = code(int(text))


def assert_codes(rows: Any, numbers: Sequence[int]) -> None:
    assert rows["values"].tolist() == [[-n, n] for n in numbers]
    assert dequantized(rows).tolist() == [[(n + 0.5) * x for x in (-n, n)] for n in numbers]


def test_every_option_is_in_the_message_and_again_in_a_new_session() -> None:
    core, _ = opened()
    expected = Embed(
        1, ("a", "b"), 0, 10_000.0, "", "query", 2, False, "left", "bulk", dtype="int8", prompt=None, titles=("one", "two")
    )
    assert asked(core, ["a", "b"], options=TITLED)[1] == expected
    said(core, wire.Who(8))
    assert said(core, welcome()) == [expected]
    _, message = asked(core, ["a"], options=Options(prompt="Q: ", truncate=False))
    assert message is not None
    assert (message.prompt, message.prompt_name, message.truncate, message.titles) == ("Q: ", None, False, ())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_room_is_as_large_as_rows_of_its_type(dtype: Dtype) -> None:
    core, _ = opened()
    asked(core, ["a"] * 41, options=Options(dtype=dtype, dim=3))
    assert core.arena is not None
    assert core.arena.taken_bytes == aligned(41 * {"float32": 12, "float16": 8, "int8": 12, "uint8": 12}.get(dtype, 4))


def test_int8_vectors_are_records_over_the_sessions_segment() -> None:
    core, maps = opened()
    ticket, message = asked(core, ["3", "5"], options=TITLED)
    assert message is not None
    fill(maps[0], message)
    said(core, answer(ticket.id, 2, 2))
    assert isinstance(ticket.result, np.ndarray)
    assert ticket.result.shape == (2,)
    assert_codes(ticket.result, [3, 5])
    assert not ticket.result.flags.writeable
    fill(maps[0], Embed(1, ("6", "7"), message.offset))
    assert_codes(ticket.result, [6, 7])


def test_a_room_is_kept_by_any_part_of_a_record_that_is_still_held() -> None:
    core, maps = opened()
    ticket, message = asked(core, ["3"], options=TITLED)
    assert core.arena is not None and message is not None
    fill(maps[0], message)
    said(core, answer(ticket.id, 1, 2))
    assert isinstance(ticket.result, np.ndarray)
    record = ticket.result[0]  # as embed_query gives it
    del ticket
    gc.collect()
    assert core.arena.taken_bytes == 64
    values = record["values"]
    del record
    gc.collect()
    assert core.arena.taken_bytes == 64
    assert values.tolist() == [-3, 3]
    del values
    gc.collect()
    assert core.arena.taken_bytes == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_inline_vectors_of_any_type_are_read_only_views_of_just_the_right_number_of_bytes(dtype: Dtype) -> None:
    for rows, dim in ((1, 4), (3, 3), (2, 1)):
        whole = room_bytes(rows, dim, dtype)
        others = {room_bytes(rows, dim, other) for other in get_args(Dtype)} - {whole}
        for size in (whole, whole - 1, whole + 1, whole - 4, whole + 4, 0, *others):
            core, _ = opened(0)
            ticket, message = asked(core, ["a"] * rows, options=Options(dtype=dtype, dim=dim))
            assert message is not None and message.offset is None
            said(core, wire.Vectors(ticket.id, rows, dim, 3, "one", True), bytes(size))
            if size != whole:
                assert isinstance(ticket.result, errors.ProtocolError)
                assert f"{size} bytes" in ticket.result.message
                continue
            assert isinstance(ticket.result, np.ndarray)
            assert len(ticket.result) == rows and not ticket.result.flags.writeable
            assert not ticket.result.flags.owndata


def test_inline_int8_vectors_are_records() -> None:
    core, _ = opened(0)
    ticket, _ = asked(core, ["2", "9"], options=TITLED)
    said(core, wire.Vectors(ticket.id, 2, 2, 3, "one", True), code(2) + code(9))
    assert_codes(ticket.result, [2, 9])


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_texts_give_no_rows_of_the_type_that_was_asked_for(dtype: Dtype) -> None:
    core, _ = opened()
    some, _ = asked(core, ["a"], options=Options(dtype=dtype))
    none, _ = asked(core, [], options=Options(dtype=dtype))
    said(core, answer(some.id, 1))
    said(core, wire.Vectors(none.id, 0, 4, 0, "one"))
    assert isinstance(some.result, np.ndarray) and isinstance(none.result, np.ndarray)
    assert none.result.dtype == some.result.dtype
    assert none.result.shape == (0, *some.result.shape[1:])


@pytest.mark.parametrize("titles", [("a", "\ud800"), ("a", 5), ("a", b"b")], ids=repr)
def test_a_title_that_is_no_text_is_refused_before_anything_is_sent(titles: Any) -> None:
    core, _ = opened()
    with pytest.raises(errors.BadRequest):
        asked(core, ["x", "y"], options=Options(prompt_name="query", titles=titles))
    assert core.tickets == {}


# ── keywords ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keywords_become_options_and_titles_of_any_kind_a_tuple_of_plain_strings() -> None:
    assert options_of({}) is DEFAULTS
    assert options_of({"dim": 3, "dtype": "ubinary", "prompt": ""}) == Options(dim=3, dtype="ubinary", prompt="")
    for titles in (["a", "b"], ("a", "b"), iter(["a", "b"]), {"a": 1, "b": 2}, [np.str_("a"), "b"]):
        made = options_of({"titles": titles}).titles  # type: ignore[typeddict-item]
        assert (made, [type(title) for title in made]) == (("a", "b"), [str, str])
    assert options_of({"titles": None}).titles == ()  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"dtype": "float64"}, ["dtype", "float32, float16, int8, uint8, binary, ubinary", "'float64'"]),
        ({"dtype": None}, ["dtype", "None"]),
        ({"dtype": np.float32}, ["dtype", "numpy.float32"]),
        ({"truncate": "middle"}, ["truncate", "True, False, left or right", "'middle'"]),
        ({"truncate": None}, ["truncate", "None"]),
        ({"prompt": 5}, ["prompt", "5"]),
        ({"prompt": b"Q: "}, ["prompt", "b'Q: '"]),
        ({"titles": "one string"}, ["one string", "list of strings"]),
        ({"priority": "urgent"}, ["priority", "'urgent'"]),
        ({"dim": True}, ["dim", "True"]),
        ({"dim": -1}, ["dim", "-1"]),
        ({"dim": 2.0}, ["dim", "2.0"]),
        ({"title": ["a"], "dtyp": "int8", "dim": 3}, ["no such keyword: dtyp, title"]),
    ],
    ids=str,
)
def test_a_keyword_of_the_wrong_kind_is_named(keywords: Any, words: list[str]) -> None:
    with pytest.raises(errors.BadRequest) as caught:
        options_of(keywords)
    for word in words:
        assert word in caught.value.message


# ── many texts ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [0, 1, 299, 301])
def test_titles_of_another_number_than_texts_are_refused_before_anything_is_sent(count: int) -> None:
    texts = ("text",) * 300
    if count:
        with pytest.raises(errors.BadRequest, match=f"{count} titles for 300 texts"):
            Assembly(texts, Options(titles=("title",) * count), 4, None, LIMITS, False)
    else:
        assert Assembly(texts, Options(), 4, None, LIMITS, False).open_chunks == 0


def test_every_chunk_has_the_titles_of_its_own_texts_and_all_other_options() -> None:
    texts = tuple(f"text {i}" for i in range(450))
    options = Options(prompt_name="query", dim=3, dtype="int8", truncate="left", titles=tuple(f"title {i}" for i in range(450)))
    assembly = Assembly(texts, options, 3, None, Limits(10_000, 10_000, 1000, 10_000), False)
    pairs: list[tuple[str, str]] = []
    while (chunk := assembly.next_chunk()) is not None:
        assert len(chunk.texts) <= CHUNK_ROWS
        pairs += zip(chunk.texts, chunk.options.titles, strict=True)
        assert chunk.options == Options(prompt_name="query", dim=3, dtype="int8", truncate="left", titles=chunk.options.titles)
    assert pairs == [(f"text {i}", f"title {i}") for i in range(450)]


@pytest.mark.parametrize("lost", [None, 0, 1, 2], ids=lambda lost: f"session lost at chunk {lost}")
@pytest.mark.parametrize("placed", [True, False])
def test_chunks_of_int8_come_together_whether_in_place_or_copied_or_both(placed: bool, lost: int | None) -> None:
    core, maps = opened(8192)
    texts = tuple(str(i % 100) for i in range(250))
    options = Options(dim=2, dtype="int8")
    room = core.reserve(250, 2, "int8") if placed else None
    assert (room is not None) is placed
    assembly = Assembly(texts, options, 2, room, core.limits, False)
    number = 0
    while (chunk := assembly.next_chunk()) is not None:
        chunk.ticket, message = asked(core, chunk.texts, options=chunk.options, place=chunk.place)
        if number == lost:
            said(core, wire.Who(8))
            (again,) = said(core, welcome(8192, "/new"))
            assert isinstance(again, Embed)
            message = again
        assert message is not None
        if placed and (lost is None or number < lost):
            assert room is not None
            assert message.offset == room.offset + 12 * chunk.start
        fill(maps[-1], message)
        said(core, answer(chunk.ticket.id, len(chunk.texts), 2))
        assert isinstance(chunk.ticket.result, np.ndarray)
        assembly.took(chunk, chunk.ticket.result)
        number += 1
    assert number == 3 and assembly.finished
    assert_codes(assembly.result(), [int(text) for text in texts])
    assert not assembly.result().flags.writeable
    in_place = placed and lost is None
    assert bool((maps[0].values == 0).all()) is (lost == 0)
    maps[0].memory[:] = bytes(8192)
    assert (assembly.result()["values"][1].tolist() == [0, 0]) is in_place, "a view only where all is in its place"


def test_chunks_that_are_in_place_are_copied_when_an_earlier_one_has_to_be_asked_for_in_a_new_session() -> None:
    core, maps = opened(8192)
    texts = tuple(str(i % 100) for i in range(250))
    options = Options(dim=2, dtype="int8")
    assembly = Assembly(texts, options, 2, core.reserve(250, 2, "int8"), core.limits, False)
    messages = []
    while (chunk := assembly.next_chunk()) is not None:
        chunk.ticket, message = asked(core, chunk.texts, options=chunk.options, place=chunk.place)
        assert message is not None
        messages.append(message)
    first, *others = list(assembly.open)
    for message in messages[1:]:
        fill(maps[0], message)
        said(core, answer(message.id, len(message.texts), 2))
    said(core, wire.Who(8))
    (again,) = said(core, welcome(8192, "/new"))
    assert isinstance(again, Embed)
    fill(maps[1], again)
    said(core, answer(again.id, len(again.texts), 2))
    for chunk in (first, *others):
        assert chunk.ticket is not None and isinstance(chunk.ticket.result, np.ndarray)
        assembly.took(chunk, chunk.ticket.result)
    assert_codes(assembly.result(), [int(text) for text in texts])
