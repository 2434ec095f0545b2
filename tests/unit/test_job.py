"""A job is where several clients' texts meet in one matrix. What must never happen is that a row lands at another's place,
or that one bad text costs its neighbours their vectors, so both are tried with an encoder whose vectors say what they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedpool.errors import SegmentError
from embedpool.protocol import Failure, Job, Part
from embedpool.worker.job import Model, Outcome, run_job

DIM = 4
SENTINEL = -77.0  # what memory holds that nobody wrote
MAX_TOKENS = 20
Table = NDArray[np.float32]


def _vector(text: str) -> list[float]:
    """A vector that no other text of these tests has."""
    return [float(len(text)), float(sum(map(ord, text))), float(ord(text[0])) if text else 0.0, 1.0]


def _unit(vector: Sequence[float]) -> Any:
    return pytest.approx(np.array(vector) / np.linalg.norm(vector))


def _encoder(vectors: Mapping[str, Sequence[float]] | None = None, breaks_on: Collection[str] = ()) -> Any:
    """A token is a character. `runs` lists the texts of every run."""
    runs: list[list[str]] = []

    def tokens(texts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        return [[ord(c) for c in (text[:MAX_TOKENS] if truncate else text)] for text in texts]

    def run(rows: Sequence[Sequence[int]], width: int) -> Table:
        texts = ["".join(map(chr, row)) for row in rows]
        runs.append(texts)
        assert all(len(row) <= width for row in rows)
        if set(texts) & set(breaks_on):
            raise RuntimeError("the runtime gives up")
        return np.array([(vectors or {}).get(text, _vector(text)) for text in texts], np.float32)

    return SimpleNamespace(tokens=tokens, run=run, runs=runs)


def _table() -> Table:
    """A segment of 16 rows."""
    return np.full((16, DIM), SENTINEL, np.float32)


def _opener(tables: Mapping[str, Table]) -> Callable[[str, int], Any]:
    def open_segment(name: str, size: int) -> Any:
        if name not in tables:
            raise SegmentError("segment cannot be opened")
        flat = tables[name].reshape(-1)
        assert size == flat.nbytes
        return SimpleNamespace(array=lambda offset, count: flat[offset // 4 : offset // 4 + count])

    return open_segment


def _part(texts: Sequence[str], rows: Sequence[int] = (), segment: str = "", **changes: Any) -> Part:
    """Asks for vectors as the model gives them: inline, or from byte 0 of a segment."""
    fields: dict[str, Any] = {"segment_bytes": 256, "offset": 0, "dim": DIM, "prompt_name": None}
    fields |= {"rows": tuple(rows or range(len(texts))), "normalize": False, "truncate": True}
    return Part(segment=segment, texts=tuple(texts), **(fields | changes))


def _run(parts: Sequence[Part], encoder: Any = None, prompts: Any = None, default_prompt: str = "", **tables: Table) -> Outcome:
    model = Model(encoder or _encoder(), prompts or {}, default_prompt, MAX_TOKENS)
    return run_job(Job(1, tuple(parts)), model, _opener(tables))


def _inline(outcome: Outcome, dim: int = DIM) -> Any:
    return np.frombuffer(outcome.payload, np.float32).reshape(-1, dim).tolist()


def _failed(outcome: Outcome) -> list[tuple[int, int, str]]:
    return [(failure.part, failure.row, failure.code) for failure in outcome.failures]


def _written(table: Table) -> list[int]:
    return [row for row in range(len(table)) if (table[row] != SENTINEL).any()]


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_land_where_their_numbers_say_and_nothing_else_is_touched() -> None:
    table = _table()
    outcome = _run([_part(["long text", "b", "middle"], rows=[5, 0, 2], segment="a", offset=64)], a=table)
    assert _written(table) == [4, 6, 9]
    assert table[[9, 4, 6]].tolist() == [_vector("long text"), _vector("b"), _vector("middle")]
    assert outcome == Outcome(tokens=[16])


def test_parts_of_different_requests_in_one_batch_each_get_their_own_rows() -> None:
    one, other, encoder = _table(), _table(), _encoder()
    parts = [
        _part(["aa", "bb"], rows=[1, 0], segment="one"),
        _part(["cc"]),
        _part(["dd"], rows=[3], segment="other", offset=128, normalize=True),
        _part(["ee", "ff"], rows=[7, 8], dim=2),
    ]
    outcome = _run(parts, encoder, one=one, other=other)
    assert encoder.runs == [["aa", "bb", "cc", "dd", "ee", "ff"]], "one batch was meant"
    assert one[:2].tolist() == [_vector("bb"), _vector("aa")] and _written(one) == [0, 1]
    assert other[8 + 3] == _unit(_vector("dd")) and _written(other) == [11]
    payload = [*_vector("cc"), *_vector("ee")[:2], *_vector("ff")[:2]]
    assert outcome == Outcome([4, 2, 2, 4], [], np.array(payload, np.float32).tobytes())


def test_inline_rows_come_in_the_order_of_the_part_whatever_their_lengths() -> None:
    texts = ["a", "the longest of all", "bbb", "", "cc"]
    assert _inline(_run([_part(texts, rows=[9, 4, 11, 2, 30])])) == [_vector(text) for text in texts]


@pytest.mark.parametrize(
    "place", [(256,), (252,), (244,), (2,), (2**62,), (-64,), (0, 0, 16), (32, 0, 14), (32, 1, -3)], ids=str
)
def test_a_row_outside_its_segment_fails_its_part_and_nothing_of_it_is_written(place: tuple[int, ...]) -> None:
    table, encoder = _table(), _encoder()
    part = _part(["a", "b"], place[1:], segment="a", offset=place[0])
    outcome = _run([part, _part(["fine"])], encoder, a=table)
    assert _written(table) == []
    # A negative row has no form on the wire: it is reported as row 0.
    assert _failed(outcome) == [(0, max(row, 0), "bad_message") for row in part.rows]
    assert encoder.runs == [["fine"]] and _inline(outcome) == [_vector("fine")]


def test_a_segment_that_is_gone_fails_its_part_and_no_other() -> None:
    outcome = _run([_part(["a", "b"], segment="gone"), _part(["fine"])])
    assert _failed(outcome) == [(0, 0, "no_space"), (0, 1, "no_space")]
    assert _inline(outcome) == [_vector("fine")]


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_vectors_are_cut_and_only_then_normalised() -> None:
    outcome = _run([_part(["a"], dim=2, normalize=True)], _encoder({"a": [3.0, 4.0, 12.0, np.nan]}))
    assert (_inline(outcome, 2), outcome.failures) == ([pytest.approx([0.6, 0.8])], [])


def test_vectors_that_are_not_to_be_normalised_are_written_bit_for_bit() -> None:
    vector = [3.25, -4.5, 1e-12, 84.0]
    assert _run([_part(["a"])], _encoder({"a": vector})).payload == np.array(vector, np.float32).tobytes()


def test_a_zero_vector_is_written_as_zeros_where_it_should_be_normalised() -> None:
    table = _table()
    outcome = _run([_part(["a"], segment="a", normalize=True)], _encoder({"a": [0.0] * DIM}), a=table)
    assert (table[0].tolist(), _written(table), outcome.failures) == ([0.0] * DIM, [0], [])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_vector_that_is_not_finite_fails_its_row_alone(bad: float, normalize: bool) -> None:
    table, encoder = _table(), _encoder({"bb": [1.0, bad, 0.0, 1.0]})
    outcome = _run([_part(["aa", "bb", "cc"], rows=[0, 2, 3], segment="a", normalize=normalize)], encoder, a=table)
    assert len(encoder.runs) == 1
    assert _failed(outcome) == [(0, 2, "encode_failed")]
    assert _written(table) == [0, 3], "a row that failed was written, or another was not"
    for text, row in (("aa", 0), ("cc", 3)):
        assert table[row] == (_unit(_vector(text)) if normalize else pytest.approx(_vector(text)))


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_a_finite_vector_is_normalised_however_long_it_is(size: float) -> None:
    outcome = _run([_part(["a"], normalize=True)], _encoder({"a": [size, 0.0, 0.0, size]}))
    assert not outcome.failures and _inline(outcome) == [pytest.approx([0.5**0.5, 0.0, 0.0, 0.5**0.5])]


def test_a_room_wider_than_the_vectors_fails_its_rows() -> None:
    assert len(_failed(_run([_part(["a"], dim=DIM + 1)]))) == 1


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "default", "prefix"),
    [("query", "", "Q: "), (None, "query", "Q: "), ("doc", "query", "D: "), (None, "", ""), ("bare", "query", "")],
)
def test_the_prompt_stands_before_every_text_of_its_part(name: str | None, default: str, prefix: str) -> None:
    encoder = _encoder()
    parts = [_part(["aa", "bb"], prompt_name=name), _part(["c"], prompt_name="doc")]
    outcome = _run(parts, encoder, prompts={"query": "Q: ", "doc": "D: ", "bare": ""}, default_prompt=default)
    assert sorted(text for texts in encoder.runs for text in texts) == sorted([prefix + "aa", prefix + "bb", "D: c"])
    assert outcome.tokens == [2 * (2 + len(prefix)), 4], "the prompt is read too, so it counts"


def test_a_text_too_long_fails_alone_where_it_must_not_be_cut() -> None:
    table = _table()
    texts = ["aa", "x" * (MAX_TOKENS + 1), "y" * MAX_TOKENS]
    outcome = _run([_part(texts, rows=[4, 5, 6], segment="a", truncate=False)], a=table)
    reason = "text 5 has 21 tokens, the model reads 20: shorten it or let truncate be true"
    assert outcome.failures == [Failure(0, 5, "too_long", reason)]
    assert outcome.tokens == [2 + MAX_TOKENS], "a text that was not read costs no tokens"
    assert table[[4, 6]].tolist() == [_vector(texts[0]), _vector(texts[2])] and _written(table) == [4, 6]


def test_a_text_too_long_is_cut_where_it_may_be() -> None:
    outcome = _run([_part(["x" * 50])])
    assert (_inline(outcome), outcome.failures, outcome.tokens) == ([_vector("x" * MAX_TOKENS)], [], [MAX_TOKENS])


def test_a_run_that_raises_is_tried_row_by_row_and_only_the_bad_row_fails() -> None:
    table, encoder = _table(), _encoder(breaks_on=["bb"])
    outcome = _run([_part(["aa", "bb"], segment="a"), _part(["cc", "bb", "dd"], rows=[7, 8, 9])], encoder, a=table)
    assert encoder.runs == [["aa", "bb", "cc", "bb", "dd"], ["aa"], ["bb"], ["cc"], ["bb"], ["dd"]]
    assert _failed(outcome) == [(0, 1, "encode_failed"), (1, 8, "encode_failed")]
    assert not any("gives up" in failure.message for failure in outcome.failures), "the runtime's words stay in the log"
    assert table[0].tolist() == _vector("aa") and _written(table) == [0]
    assert _inline(outcome) == [_vector("cc"), [0.0] * DIM, _vector("dd")], "a hole keeps the others in place"


def test_a_job_without_rows_is_done() -> None:
    assert _run([_part([])]) == Outcome([0])


def test_a_text_that_the_tokenizer_cannot_read_fails_alone() -> None:
    def tokens(texts: Sequence[str], *, truncate: bool) -> Any:
        if "bb" in texts:
            raise RuntimeError("the tokenizer gives up")
        return _encoder().tokens(texts, truncate=truncate)

    outcome = _run([_part(["aa", "bb"])], SimpleNamespace(tokens=tokens, run=_encoder().run))
    assert [row for _, row, _ in _failed(outcome)] == [1]


def test_no_row_is_reported_twice() -> None:
    outcome = _run([_part(["x" * 50, "a"], rows=[0, 99], segment="a", truncate=False)], a=_table())
    assert sorted(row for _, row, _ in _failed(outcome)) == [0, 99]
