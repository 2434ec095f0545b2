"""What a client says and understands, without a socket: sessions, rooms, answers, and what a new router changes."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from embedpool import errors
from embedpool import protocol as wire
from embedpool.client.arena import Vectors
from embedpool.client.core import ClientCore, Options
from embedpool.client.documents import Assembly
from embedpool.protocol import Embed, Hello, Limits, ModelCard

CARD = ModelCard("model", 4, 512, "one", ("query",))
LIMITS = Limits(100, 10_000, 1000, 10_000)
OPTIONS = Options()


class Memory:
    """A mapping without a file. Row r of a room holds whatever a test writes there."""

    def __init__(self, path: str, size: int) -> None:
        if path == "/gone":
            raise errors.SegmentError("the session's segment cannot be opened: gone")
        self.size = size
        self.values = np.zeros(size // 4, np.float32)
        self.closed = False

    def array(self, offset: int, count: int) -> Vectors:
        view = self.values[offset // 4 : offset // 4 + count].view()
        view.flags.writeable = False
        return np.frombuffer(view, np.float32)

    def close(self) -> None:
        self.closed = True


def client(size: int = 4096) -> tuple[ClientCore, list[Memory]]:
    """A core that has not said hello, and the list of what it maps."""
    maps: list[Memory] = []

    def make(path: str, size: int) -> Memory:
        maps.append(Memory(path, size))
        return maps[-1]

    return ClientCore(make, size, "test"), maps


def opened(size: int = 4096) -> tuple[ClientCore, list[Memory]]:
    core, maps = client(size)
    assert isinstance(said(core, wire.Who(7))[0], Hello)
    assert said(core, welcome(size)) == []
    return core, maps


def welcome(size: int = 4096, path: str = "/segment", card: ModelCard = CARD) -> wire.Welcome:
    return wire.Welcome(wire.VERSION, LIMITS, (card,), path if size else "", size)


def said(core: ClientCore, message: wire.Message, payload: bytes = b"", now: float = 0.0) -> list[wire.Message]:
    return [wire.decode(frame) for frame in core.received(wire.encode(message), payload, now)]


def asked(core: ClientCore, texts: list[str], now: float = 0.0) -> tuple[int, Embed | None]:
    ticket, frames = core.ask(texts, OPTIONS, now + 10.0, now)
    messages = [wire.decode(frame) for frame in frames]
    assert all(isinstance(message, Embed) for message in messages)
    return ticket.id, messages[0] if messages else None  # type: ignore[return-value]


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
    said(core, answer(held, 1))
    one, before = asked(core, ["one"])
    assert before is not None
    assert isinstance(said(core, wire.Who(8))[0], Hello)
    two, frame = asked(core, ["two"])
    assert frame is None, "it would name a room of the old segment"
    again = said(core, welcome(path="/new"))
    assert [(m.id, m.texts) for m in again if isinstance(m, Embed)] == [(one, ("one",)), (two, ("two",))]
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
    id, _ = asked(core, ["one"])
    said(core, wire.Who(8))
    (again,) = said(core, welcome(card=ModelCard("model", 16, 512, "two")))
    assert isinstance(again, Embed)
    ticket = core.tickets[id]
    said(core, wire.Vectors(id, 1, 16, 3, "two"))
    assert isinstance(ticket.result, np.ndarray)
    assert ticket.result.shape == (1, 16)
    assert ticket.fingerprint == "two"


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
    assembly = Assembly(texts, 4, None, LIMITS, False)
    chunk = assembly.next_chunk()
    assert chunk is not None
    refused = errors.Overloaded("full", retry_after_ms=400)
    assert assembly.again(chunk, refused, 100.0, 60.0) == 0.4
    assert chunk.give_up_at == 160.0
    assert assembly.again(chunk, errors.Overloaded("full", retry_after_ms=50_000), 110.0, 60.0) == 1.0
    assert assembly.again(chunk, refused, 159.7, 60.0) is None


def test_chunks_cover_every_text_once_and_stay_within_the_pools_limit() -> None:
    texts = tuple("x" * (i % 50) for i in range(1000))
    assembly = Assembly(texts, 4, None, LIMITS, False)
    found: list[str] = []
    while (chunk := assembly.next_chunk()) is not None:
        assert chunk.start == len(found)
        assert 0 < len(chunk.texts) <= LIMITS.request_rows
        found += chunk.texts
    assert tuple(found) == texts
