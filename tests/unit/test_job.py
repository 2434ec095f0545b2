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
NO_VECTORS: Mapping[str, Sequence[float]] = {}


def _vector(text: str) -> list[float]:
    """A vector that no other text of these tests has."""
    return [float(len(text)), float(sum(map(ord, text))), float(ord(text[0])) if text else 0.0, 1.0]


def _unit(vector: Sequence[float]) -> NDArray[np.float32]:
    values = np.array(vector, np.float64)
    return (values / np.linalg.norm(values)).astype(np.float32)


def _encoder(vectors: Mapping[str, Sequence[float]] = NO_VECTORS, breaks_on: Collection[str] = ()) -> Any:
    """A token is a character. `runs` lists the texts of every run."""
    runs: list[list[str]] = []

    def tokens(texts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        return [[ord(c) for c in (text[:MAX_TOKENS] if truncate else text)] for text in texts]

    def run(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.float32]:
        texts = ["".join(map(chr, row)) for row in rows]
        runs.append(texts)
        assert all(len(row) <= width for row in rows)
        if set(texts) & set(breaks_on):
            raise RuntimeError("the runtime gives up")
        return np.array([vectors.get(text, _vector(text)) for text in texts], np.float32)

    return SimpleNamespace(tokens=tokens, run=run, runs=runs)


def _segment(values: int = 64) -> NDArray[np.float32]:
    return np.full(values, SENTINEL, np.float32)


def _opener(segments: Mapping[str, NDArray[np.float32]]) -> Callable[[str, int], Any]:
    def open_segment(name: str, size: int) -> Any:
        memory = segments[name]
        assert size == memory.nbytes
        return SimpleNamespace(array=lambda offset, count: memory[offset // 4 : offset // 4 + count])

    return open_segment


def _part(texts: Sequence[str], rows: Sequence[int] = (), segment: str = "a", **changes: Any) -> Part:
    """float32[…, DIM] at byte 0 of a segment of 64 values, vectors as the model gives them."""
    fields = dict(segment=segment, segment_bytes=256, offset=0, dim=DIM, prompt_name=None, normalize=False, truncate=True)
    return Part(rows=tuple(rows or range(len(texts))), texts=tuple(texts), **(fields | changes))


def _run(parts: Sequence[Part], encoder: Any = None, segments: Mapping[str, Any] | None = None, **model: Any) -> Outcome:
    settings = {"prompts": {}, "default_prompt": "", "max_tokens": MAX_TOKENS} | model
    return run_job(Job(1, tuple(parts)), Model(encoder or _encoder(), **settings), _opener(segments or {}))


def _inline(outcome: Outcome, dim: int = DIM) -> list[list[float]]:
    rows: list[list[float]] = np.frombuffer(outcome.payload, np.float32).reshape(-1, dim).tolist()
    return rows


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_land_where_their_numbers_say_and_nothing_else_is_touched() -> None:
    memory = _segment()
    outcome = _run([_part(["long text", "b", "middle"], rows=[5, 0, 2], offset=64)], segments={"a": memory})
    table = memory.reshape(16, DIM)
    assert table[4 + 5].tolist() == _vector("long text")
    assert table[4 + 0].tolist() == _vector("b")
    assert table[4 + 2].tolist() == _vector("middle")
    assert [row for row in range(16) if not (table[row] == SENTINEL).all()] == [4, 6, 9]
    assert (outcome.failures, outcome.payload, outcome.tokens) == ([], b"", [16])


def test_parts_of_different_requests_in_one_batch_each_get_their_own_rows() -> None:
    one, other = _segment(), _segment()
    encoder = _encoder()
    parts = [
        _part(["aa", "bb"], rows=[1, 0], segment="a"),
        _part(["cc"], segment=""),
        _part(["dd"], rows=[3], segment="b", offset=128, normalize=True),
        _part(["ee", "ff"], rows=[7, 8], segment="", dim=2),
    ]
    outcome = _run(parts, encoder, {"a": one, "b": other})
    assert [sorted(texts) for texts in encoder.runs] == [["aa", "bb", "cc", "dd", "ee", "ff"]], "one batch was meant"
    assert one.reshape(16, DIM)[:2].tolist() == [_vector("bb"), _vector("aa")]
    assert other.reshape(16, DIM)[8 + 3] == pytest.approx(_unit(_vector("dd")))
    payload = np.frombuffer(outcome.payload, np.float32).tolist()
    assert payload == [*_vector("cc"), *_vector("ee")[:2], *_vector("ff")[:2]]
    assert (outcome.tokens, outcome.failures) == ([4, 2, 2, 4], [])
    assert (
        (one[2 * DIM :] == SENTINEL).all() and (other[: 11 * DIM] == SENTINEL).all() and (other[12 * DIM :] == SENTINEL).all()
    )


def test_inline_rows_come_in_the_order_of_the_part_whatever_their_lengths() -> None:
    texts = ["a", "the longest of all", "bbb", "", "cc"]
    outcome = _run([_part(texts, rows=[9, 4, 11, 2, 30], segment="")])
    assert _inline(outcome) == [_vector(text) for text in texts]


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 256},
        {"offset": 252},
        {"offset": 256 - 16 + 4},
        {"offset": 2},
        {"offset": 2**62},
        {"rows": (0, 15)},
        {"rows": (0, -1)},
    ],
    ids=str,
)
def test_a_row_outside_its_segment_fails_its_part_and_nothing_of_it_is_written(changes: dict[str, Any]) -> None:
    memory = _segment()
    encoder = _encoder()
    part = _part(["a", "b"], **({"offset": 32} | changes))
    outcome = _run([part, _part(["fine"], segment="")], encoder, {"a": memory})
    assert (memory == SENTINEL).all()
    assert [(f.part, f.row, f.code) for f in outcome.failures] == [(0, row, "bad_message") for row in part.rows]
    assert encoder.runs == [["fine"]]
    assert _inline(outcome) == [_vector("fine")]


def test_a_segment_that_is_gone_fails_its_part_and_no_other() -> None:
    def gone(name: str, size: int) -> Any:
        raise SegmentError("segment cannot be opened")

    job = Job(1, (_part(["a", "b"]), _part(["fine"], segment="")))
    outcome = run_job(job, Model(_encoder(), {}, "", MAX_TOKENS), gone)
    assert [(f.part, f.row, f.code) for f in outcome.failures] == [(0, 0, "no_space"), (0, 1, "no_space")]
    assert _inline(outcome) == [_vector("fine")]


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_vectors_are_cut_and_only_then_normalised() -> None:
    memory = _segment()
    _run([_part(["a"], dim=2, normalize=True)], _encoder({"a": [3.0, 4.0, 12.0, 84.0]}), {"a": memory})
    assert memory[:3] == pytest.approx([0.6, 0.8, SENTINEL])


def test_vectors_that_are_not_to_be_normalised_are_written_bit_for_bit() -> None:
    vector = [3.25, -4.5, 1e-12, 84.0]
    outcome = _run([_part(["a"], segment="")], _encoder({"a": vector}))
    assert outcome.payload == np.array(vector, np.float32).tobytes()


def test_a_zero_vector_is_written_as_zeros_where_it_should_be_normalised() -> None:
    memory = _segment()
    outcome = _run([_part(["a"], normalize=True)], _encoder({"a": [0.0] * DIM}), {"a": memory})
    assert memory[: DIM + 1].tolist() == [0.0, 0.0, 0.0, 0.0, SENTINEL]
    assert outcome.failures == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_vector_that_is_not_finite_fails_its_row_alone(bad: float, normalize: bool) -> None:
    memory = _segment()
    encoder = _encoder({"bb": [1.0, bad, 0.0, 1.0]})
    outcome = _run([_part(["aa", "bb", "cc"], rows=[0, 2, 3], normalize=normalize)], encoder, {"a": memory})
    table = memory.reshape(16, DIM)
    assert len(encoder.runs) == 1
    assert [(f.part, f.row, f.code) for f in outcome.failures] == [(0, 2, "encode_failed")]
    assert (table[2] == SENTINEL).all(), "a row that failed was written"
    for text, row in (("aa", 0), ("cc", 3)):
        assert table[row] == pytest.approx(_unit(_vector(text)) if normalize else _vector(text))


def test_what_is_not_finite_beyond_the_cut_harms_nobody() -> None:
    outcome = _run([_part(["a"], segment="", dim=2)], _encoder({"a": [3.0, 4.0, np.nan, np.inf]}))
    assert (outcome.failures, _inline(outcome, 2)) == ([], [[3.0, 4.0]])


@pytest.mark.xfail(
    strict=True, reason="the float32 square of a finite vector under- or overflows: written as it is, or refused"
)
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_a_finite_vector_is_normalised_however_long_it_is(size: float) -> None:
    outcome = _run([_part(["a"], segment="", normalize=True)], _encoder({"a": [size, 0.0, 0.0, size]}))
    assert (outcome.failures, _inline(outcome)[0]) == ([], pytest.approx([0.5**0.5, 0.0, 0.0, 0.5**0.5]))


@pytest.mark.xfail(strict=True, raises=ValueError, reason="a dim beyond the model's raises out of the job and ends the worker")
def test_a_room_wider_than_the_vectors_fails_its_rows() -> None:
    outcome = _run([_part(["a"], segment="", dim=DIM + 1)])
    assert [(f.part, f.row) for f in outcome.failures] == [(0, 0)]


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "default", "prefix"),
    [("query", "", "Q: "), (None, "query", "Q: "), ("doc", "query", "D: "), (None, "", ""), ("bare", "query", "")],
)
def test_the_prompt_stands_before_every_text_and_counts_as_tokens(name: str | None, default: str, prefix: str) -> None:
    encoder = _encoder()
    prompts = {"query": "Q: ", "doc": "D: ", "bare": ""}
    outcome = _run([_part(["aa", "bb"], segment="", prompt_name=name)], encoder, prompts=prompts, default_prompt=default)
    assert encoder.runs == [[prefix + "aa", prefix + "bb"]]
    assert outcome.tokens == [2 * (2 + len(prefix))]


def test_each_part_has_its_own_prompt() -> None:
    encoder = _encoder()
    parts = [_part(["x"], segment="", prompt_name="query"), _part(["yyyy"], segment="")]
    _run(parts, encoder, prompts={"query": "Q: "})
    assert sorted(text for texts in encoder.runs for text in texts) == ["Q: x", "yyyy"]


def test_a_text_too_long_fails_alone_where_it_must_not_be_cut() -> None:
    memory = _segment()
    encoder = _encoder()
    texts = ["aa", "x" * (MAX_TOKENS + 1), "y" * MAX_TOKENS]
    outcome = _run([_part(texts, rows=[4, 5, 6], truncate=False)], encoder, {"a": memory})
    reason = "text 5 has 21 tokens, the model reads 20: shorten it or let truncate be true"
    assert outcome.failures == [Failure(0, 5, "too_long", reason)]
    assert outcome.tokens == [2 + MAX_TOKENS], "a text that was not read costs no tokens"
    table = memory.reshape(16, DIM)
    assert table[[4, 6]].tolist() == [_vector(texts[0]), _vector(texts[2])]
    assert (table[5] == SENTINEL).all()


def test_a_text_too_long_is_cut_where_it_may_be() -> None:
    outcome = _run([_part(["x" * 50], segment="")])
    assert _inline(outcome) == [_vector("x" * MAX_TOKENS)]
    assert (outcome.failures, outcome.tokens) == ([], [MAX_TOKENS])


def test_a_run_that_raises_is_tried_row_by_row_and_only_the_bad_row_fails() -> None:
    memory = _segment()
    encoder = _encoder(breaks_on=["bb"])
    outcome = _run([_part(["aa", "bb"]), _part(["cc"], rows=[9], segment="")], encoder, {"a": memory})
    assert encoder.runs == [["aa", "bb", "cc"], ["aa"], ["bb"], ["cc"]]
    assert [(f.part, f.row, f.code) for f in outcome.failures] == [(0, 1, "encode_failed")]
    assert "the runtime gives up" not in outcome.failures[0].message
    assert memory[:DIM].tolist() == _vector("aa") and (memory[DIM:] == SENTINEL).all()
    assert _inline(outcome) == [_vector("cc")]


def test_a_row_that_fails_inline_leaves_zeros_so_that_the_others_stay_in_place() -> None:
    outcome = _run([_part(["aa", "bb", "cc"], segment="")], _encoder(breaks_on=["bb"]))
    assert _inline(outcome) == [_vector("aa"), [0.0] * DIM, _vector("cc")]


def test_a_job_without_rows_is_done() -> None:
    assert _run([]) == Outcome([])
    assert _run([_part([], segment="")]) == Outcome([0])


@pytest.mark.xfail(
    strict=True, raises=RuntimeError, reason="what the tokenizer raises for one text leaves the job and ends the worker"
)
def test_a_text_that_the_tokenizer_cannot_read_fails_alone() -> None:
    encoder = _encoder()
    whole = encoder.tokens

    def tokens(texts: Sequence[str], *, truncate: bool) -> Any:
        if "bb" in texts:
            raise RuntimeError("the tokenizer gives up")
        return whole(texts, truncate=truncate)

    outcome = _run([_part(["aa", "bb"], segment="")], SimpleNamespace(tokens=tokens, run=encoder.run))
    assert [(f.part, f.row) for f in outcome.failures] == [(0, 1)]


@pytest.mark.xfail(strict=True, reason="rows found too long before the bad place are reported a second time")
def test_no_row_is_reported_twice() -> None:
    part = _part(["x" * 50, "a"], rows=[0, 99], truncate=False)
    outcome = _run([part], segments={"a": _segment()})
    assert sorted(f.row for f in outcome.failures) == [0, 99]
