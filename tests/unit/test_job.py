"""A job is where several clients' texts meet in one matrix. What must never happen is that a row lands at another's place,
or that one bad text costs its neighbours their vectors, so both are tried with an encoder whose vectors say what they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from embedpool.errors import SegmentError
from embedpool.models.spec import ModelSpec
from embedpool.protocol import Failure, Job, Part
from embedpool.shm.layout import Dtype, row_bytes
from embedpool.shm.rows import dequantized, view
from embedpool.worker.job import Model, Outcome, run_job

DIM = 4
SENTINEL = -77.0  # what memory holds that nobody wrote
MAX_TOKENS = 20
TYPES: tuple[Dtype, ...] = get_args(Dtype)
NOTHING: dict[str, Any] = {}
Table = NDArray[np.float32]


def _vector(text: str) -> list[float]:
    """A vector that no other text of these tests has."""
    return [float(len(text)), float(sum(map(ord, text))), float(ord(text[0])) if text else 0.0, 1.0]


def _unit(vector: Sequence[float]) -> Any:
    return pytest.approx(np.array(vector) / np.linalg.norm(vector))


def _encoder(
    vectors: Mapping[str, Sequence[float]] | None = None, breaks_on: Collection[str] = (), kind: Any = np.float32
) -> Any:
    """A token is a character. `runs` lists the texts of every run, `widths` its width, `cuts` how texts were to be cut."""
    runs: list[list[str]] = []
    widths: list[int] = []
    cuts: list[str] = []

    def tokens(texts: Sequence[str], cut: str) -> list[list[int]]:
        cuts.append(cut)
        part = {"": slice(None), "left": slice(-MAX_TOKENS, None), "right": slice(MAX_TOKENS)}[cut]
        return [[ord(c) for c in text[part]] for text in texts]

    def run(rows: Sequence[Sequence[int]], width: int) -> NDArray[Any]:
        texts = ["".join(map(chr, row)) for row in rows]
        runs.append(texts)
        widths.append(width)
        assert all(len(row) <= width for row in rows)
        if set(texts) & set(breaks_on):
            raise RuntimeError("the runtime gives up")
        return np.array([(vectors or {}).get(text, _vector(text)) for text in texts], kind)

    return SimpleNamespace(tokens=tokens, run=run, runs=runs, widths=widths, cuts=cuts)


def _table() -> Table:
    """A segment of 16 rows."""
    return np.full((16, DIM), SENTINEL, np.float32)


def _opener(tables: Mapping[str, NDArray[Any]]) -> Callable[[str, int], Any]:
    def open_segment(name: str, size: int) -> Any:
        if name not in tables:
            raise SegmentError("segment cannot be opened")
        raw = tables[name].reshape(-1).view(np.uint8)
        assert size == raw.nbytes

        def room(offset: int, n: int) -> NDArray[np.uint8]:
            assert 0 <= offset <= offset + n <= size, "numpy would give a shorter row"
            return raw[offset : offset + n]

        return SimpleNamespace(room=room)

    return open_segment


def _part(texts: Sequence[str], rows: Sequence[int] = (), segment: str = "", **changes: Any) -> Part:
    """Asks for vectors as the model gives them: inline, or from byte 0 of a segment."""
    fields: dict[str, Any] = {"segment_bytes": 256, "offset": 0, "dim": DIM, "prompt_name": None}
    fields |= {"rows": tuple(rows or range(len(texts))), "normalize": False, "truncate": True}
    return Part(segment=segment, texts=tuple(texts), **(fields | changes))


def _run(parts: Sequence[Part], encoder: Any = None, spec: Mapping[str, Any] = NOTHING, **tables: NDArray[Any]) -> Outcome:
    """`spec` has fields of the model's spec that are not the usual ones."""
    fields: dict[str, Any] = {"name": "model", "dim": DIM, "max_tokens": MAX_TOKENS, "prompts": {}, "fingerprint": "f"}
    return run_job(Job(1, tuple(parts)), Model(encoder or _encoder(), ModelSpec(**(fields | dict(spec)))), _opener(tables))


def _inline(outcome: Outcome, dim: int = DIM) -> Any:
    return np.frombuffer(outcome.payload, np.float32).reshape(-1, dim).tolist()


def _failed(outcome: Outcome) -> list[tuple[int, int, str]]:
    return [(failure.part, failure.row, failure.code) for failure in outcome.failures]


def _written(table: NDArray[Any]) -> list[int]:
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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_a_finite_vector_is_normalised_however_long_it_is(size: float) -> None:
    outcome = _run([_part(["a"], normalize=True)], _encoder({"a": [size, 0.0, 0.0, size]}))
    assert not outcome.failures and _inline(outcome) == [pytest.approx([0.5**0.5, 0.0, 0.0, 0.5**0.5])]


def test_a_room_wider_than_the_vectors_fails_its_rows() -> None:
    assert len(_failed(_run([_part(["a"], dim=DIM + 1)]))) == 1


# ── types ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _assert_written(raw: NDArray[np.uint8], vectors: Sequence[Sequence[float]], dim: int, dtype: Dtype) -> None:
    """That a room holds these vectors, as close as its type can come. All values of `_vector` are whole and below 2048, which
    float16 holds exactly."""
    rows, whole = view(raw, len(vectors), dim, dtype), np.array(vectors, np.float32)[:, :dim]
    if dtype in ("int8", "uint8"):
        assert rows["scale"].tolist() == (abs(whole).max(axis=1) / np.float32(127)).tolist()
        assert (abs(dequantized(rows) - whole) <= rows["scale"][:, None] * 0.5001).all()
    elif dtype == "ubinary":
        assert rows.tolist() == np.packbits(whole > 0, axis=1).tolist()
    elif dtype == "binary":
        assert rows.tolist() == (np.packbits(whole > 0, axis=1).astype(int) - 128).tolist()
    else:
        assert rows.dtype == dtype and rows.tolist() == whole.tolist()


def test_parts_of_every_type_share_a_batch_and_each_row_lands_in_its_own_form() -> None:
    segment, encoder = np.full(512, 0xA5, np.uint8), _encoder()
    parts = [
        _part(["aa", "bb"], [2, 0], "s", segment_bytes=512, offset=80 * i, dim=3, dtype=dtype) for i, dtype in enumerate(TYPES)
    ]
    outcome = _run(parts, encoder, s=segment)
    assert encoder.runs == [["aa", "bb"]], "each text is computed once, for all six forms"
    assert outcome == Outcome([4] * 6)
    for i, dtype in enumerate(TYPES):
        width = row_bytes(3, dtype)
        for row, text in ((2, "aa"), (0, "bb")):
            start = 80 * i + row * width
            _assert_written(segment[start : start + width], [_vector(text)], 3, dtype)
            segment[start : start + width] = 0xA5
    assert (segment == 0xA5).all(), "something was written outside of the rows"


def test_inline_parts_of_every_type_lie_behind_each_other_each_in_its_own_form() -> None:
    texts = ["a", "bbb", ""]
    order = [TYPES[i] for i in (4, 2, 0, 5, 1, 3)]  # no row as wide as the one before
    payload = np.frombuffer(_run([_part(texts, dim=dim, dtype=dtype) for dim in (4, 3) for dtype in order]).payload, np.uint8)
    for dim in (4, 3):
        for dtype in order:
            room, payload = np.split(payload, [len(texts) * row_bytes(dim, dtype)])
            _assert_written(room, [_vector(text) for text in texts], dim, dtype)
    assert len(payload) == 0


def test_a_row_that_is_narrower_than_float32_may_lie_at_the_very_end_of_its_segment() -> None:
    table, part = _table(), _part(["a"], segment="a", offset=256 - row_bytes(DIM, "int8"), dtype="int8")
    assert _run([part], a=table) == Outcome([1])
    assert _failed(_run([part, _part(["b"], segment="a", offset=256 - 8, dtype="int8")], a=table)) == [(1, 0, "bad_message")]


def test_a_value_beyond_float16_fails_its_row_alone_and_says_what_to_ask_for() -> None:
    table, encoder = np.full((16, DIM), SENTINEL, np.float16), _encoder({"bb": [1e5, 0.0, 0.0, 1.0]})
    part = _part(["aa", "bb", "cc"], [0, 5, 3], "a", segment_bytes=table.nbytes, dtype="float16")
    outcome = _run([part, _part(["bb"])], encoder, a=table)
    reason = "the vector of text 5 does not fit into float16: ask for float32, or let it be normalised"
    assert outcome.failures == [Failure(0, 5, "encode_failed", reason)]
    assert _written(table) == [0, 3]
    assert _inline(outcome) == [[1e5, 0.0, 0.0, 1.0]]


def test_codes_of_a_model_that_gives_uint8_mean_values_of_the_specs_range() -> None:
    encoder = _encoder({"aa": [0, 255, 51, 102]}, kind=np.uint8)
    parts = [_part(["aa"], dtype="uint8"), _part(["aa"], dim=3)]
    payload = np.frombuffer(_run(parts, encoder, {"output": "uint8", "output_range": (-1.0, 1.0)}).payload, np.uint8)
    (codes,) = view(payload[:12], 1, 4, "uint8")
    assert codes["values"].tolist() == [0, 255, 51, 102]
    assert dequantized(codes).tolist() == pytest.approx([-1.0, 1.0, -0.6, -0.2], abs=1e-6)
    assert view(payload[12:], 1, 3, "float32").tolist() == [pytest.approx([-1.0, 1.0, -0.6])]


def test_codes_of_an_unknown_range_are_passed_on_and_become_nothing_else() -> None:
    encoder, table = _encoder({"aa": [0, 255, 51, 102]}, kind=np.uint8), _table()
    parts = [_part(["aa"], dtype="uint8"), _part(["aa"], segment="a")]
    outcome = _run(parts, encoder, {"output": "uint8"}, a=table)
    assert view(np.frombuffer(outcome.payload, np.uint8), 1, 4, "uint8")["values"].tolist() == [[0, 255, 51, 102]]
    assert outcome.failures == [
        Failure(1, 0, "encode_failed", "the vector of text 0 has values of an unknown range: ask for dtype uint8")
    ]
    assert _written(table) == []


# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "default", "prefix"),
    [
        ("query", "", "Q: "),
        (None, "query", "Q: "),
        ("doc", "query", "D: "),
        (None, "", ""),
        ("bare", "query", ""),
        ("", "query", ""),
    ],
)
def test_the_prompt_stands_before_every_text_of_its_part(name: str | None, default: str, prefix: str) -> None:
    encoder = _encoder()
    parts = [_part(["aa", "bb"], prompt_name=name), _part(["c"], prompt_name="doc")]
    spec = {"prompts": {"query": "Q: ", "doc": "D: ", "bare": ""}, "default_prompt": default}
    outcome = _run(parts, encoder, spec)
    assert sorted(text for texts in encoder.runs for text in texts) == sorted([prefix + "aa", prefix + "bb", "D: c"])
    assert outcome.tokens == [2 * (2 + len(prefix)), 4], "the prompt is read too, so it counts"


def test_a_prompt_may_be_any_text_and_beats_the_default_one() -> None:
    encoder = _encoder()
    spec = {"prompts": {"query": "Q: "}, "default_prompt": "query"}
    parts = [_part(["aa"]), _part(["bb", "cc"], prompt="{title} "), _part(["dd"], prompt=""), _part(["ee"], prompt="query")]
    outcome = _run(parts, encoder, spec)
    read = sorted(text for texts in encoder.runs for text in texts)
    assert read == sorted(["Q: aa", "{title} bb", "{title} cc", "dd", "queryee"]), 'a prompt of "" is none, not the default one'
    assert outcome.tokens == [5, 20, 2, 7]


def test_each_title_stands_before_its_own_text_whatever_is_in_it_and_none_is_said_as_the_model_says_it() -> None:
    titles = ["{title}", "{0}{x}", "}", "", "\\1%s"]
    texts = ["a", "b{title}", "c", "d", "e"]
    encoder, spec = _encoder(), {"prompts": {"doc": "t:none|"}, "titled": {"doc": "{t}{title}|"}}
    outcome = _run([_part(texts, titles=tuple(titles), prompt_name="doc"), _part(["f"], prompt_name="doc")], encoder, spec)
    read = sorted(text for texts in encoder.runs for text in texts)
    assert read == sorted(["{t}{title}|a", "{t}{0}{x}|b{title}", "{t}}|c", "t:none|d", "{t}\\1%s|e", "t:none|f"])
    assert outcome.tokens == [12 + 18 + 6 + 8 + 9, 8]


def test_titles_go_with_the_default_prompt_where_no_other_is_named() -> None:
    encoder = _encoder()
    spec = {"prompts": {"doc": "D"}, "titled": {"doc": "t:{title}|"}, "default_prompt": "doc"}
    _run([_part(["a"], titles=("x",))], encoder, spec)
    assert encoder.runs == [["t:x|a"]]


@pytest.mark.parametrize(
    ("truncate", "cut", "kept"),
    [(True, "right", slice(20)), ("right", "right", slice(20)), ("left", "left", slice(10, 30)), (False, "", None)],
)
def test_a_text_is_cut_on_the_side_that_was_asked_for(truncate: Any, cut: str, kept: slice | None) -> None:
    text, encoder = "abcdefghijklmnopqrstuvwxyz1234", _encoder()
    outcome = _run([_part([text], truncate=truncate)], encoder)
    assert encoder.cuts == [cut]
    assert encoder.runs == ([] if kept is None else [[text[kept]]])
    assert _failed(outcome) == ([(0, 0, "too_long")] if kept is None else [])


def test_parts_of_one_job_are_each_cut_on_their_own_side() -> None:
    text, encoder = "a" * 10 + "m" * 10 + "z" * 10, _encoder()
    outcome = _run([_part([text], truncate=side) for side in ("left", True, False, "right")], encoder)
    assert encoder.runs == [[text[10:], text[:20]]], "True is right: both read the same"
    assert (_failed(outcome), outcome.tokens) == ([(2, 0, "too_long")], [20, 20, 0, 20])


def test_a_text_too_long_is_measured_with_its_prompt_and_title() -> None:
    spec = {"prompts": {"doc": ""}, "titled": {"doc": "{title}|"}}
    fits, longer = "x" * 19, "x" * 15
    parts = [
        _part([fits, longer], truncate=False, prompt_name="doc", titles=("a", "12345")),
        _part([longer], truncate=False, prompt="123456"),
        _part([longer], truncate=False, prompt="12345"),
    ]
    outcome = _run(parts, spec=spec)
    reason = "text {} has 21 tokens, the model reads 20: shorten it or let truncate be true"
    assert outcome.failures == [
        *(Failure(0, row, "too_long", reason.format(row)) for row in (0, 1)),
        Failure(1, 0, "too_long", reason.format(0)),
    ]
    assert outcome.tokens == [0, 0, 20]


def test_rows_of_a_model_whose_values_depend_on_the_batch_run_alone_at_their_own_width() -> None:
    encoder, texts = _encoder(), ["aaa", "bb", "", "ccc", "ee"]
    outcome = _run([_part(texts), _part(["dd"], dim=2)], encoder, {"one_by_one": True})
    assert sorted(zip(encoder.widths, encoder.runs, strict=True)) == sorted((max(len(t), 1), [t]) for t in [*texts, "dd"])
    assert np.frombuffer(outcome.payload, np.float32).tolist() == [x for t in texts for x in _vector(t)] + _vector("dd")[:2]


def test_a_models_widths_have_steps_and_rows_of_one_width_run_together() -> None:
    encoder = _encoder()
    outcome = _run([_part(["a", "bb", "ccc", "dddddd"])], encoder, {"width_step": 4, "batch_tokens": 12})
    assert (encoder.widths, [len(run) for run in encoder.runs]) == ([8, 4], [1, 3])
    assert outcome.tokens == [1 + 2 + 3 + 6], "what fills a row up is not counted"


def test_a_row_that_is_run_again_alone_has_the_width_that_it_always_has() -> None:
    encoder = _encoder(breaks_on=["bb"])
    outcome = _run([_part(["a", "bb"])], encoder, {"width_step": 4})
    assert encoder.widths == [4, 4, 4]
    assert _failed(outcome) == [(0, 1, "encode_failed")]


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
    assert encoder.runs == [["aa", "bb", "cc", "dd"], ["aa"], ["bb"], ["cc"], ["dd"]]
    assert _failed(outcome) == [(0, 1, "encode_failed"), (1, 8, "encode_failed")]
    assert not any("gives up" in failure.message for failure in outcome.failures), "the runtime's words stay in the log"
    assert table[0].tolist() == _vector("aa") and _written(table) == [0]
    assert _inline(outcome) == [_vector("cc"), [0.0] * DIM, _vector("dd")], "a hole keeps the others in place"


def test_a_job_without_rows_is_done() -> None:
    assert _run([_part([])]) == Outcome([0])


def test_a_text_that_the_tokenizer_cannot_read_fails_alone() -> None:
    def tokens(texts: Sequence[str], cut: str) -> Any:
        if "bb" in texts:
            raise RuntimeError("the tokenizer gives up")
        return _encoder().tokens(texts, cut)

    outcome = _run([_part(["aa", "bb"])], SimpleNamespace(tokens=tokens, run=_encoder().run))
    assert [row for _, row, _ in _failed(outcome)] == [1]


def test_no_row_is_reported_twice() -> None:
    outcome = _run([_part(["x" * 50, "a"], rows=[0, 99], segment="a", truncate=False)], a=_table())
    assert sorted(row for _, row, _ in _failed(outcome)) == [0, 99]


def test_equal_texts_of_a_job_are_computed_once_and_each_written_in_its_own_form() -> None:
    table, encoder = _table(), _encoder()
    parts = [
        _part(["aa", "bb", "aa"], rows=[4, 5, 6], segment="a"),
        _part(["aa"], dim=2, normalize=True),
        _part(["a"], prompt="a"),
    ]
    outcome = _run(parts, encoder, a=table)
    assert sorted(text for texts in encoder.runs for text in texts) == ["aa", "bb"], (
        "a prompt and a text may be what another is"
    )
    assert table[[4, 5, 6]].tolist() == [_vector("aa"), _vector("bb"), _vector("aa")]
    found = np.frombuffer(outcome.payload, np.float32)
    assert found[:2].tolist() == _unit(_vector("aa")[:2]) and found[2:].tolist() == _vector("aa")
    assert outcome.tokens == [6, 2, 2], "what was asked for is counted, not what was computed"


def test_equal_texts_that_the_model_cannot_run_are_all_refused() -> None:
    encoder = _encoder(breaks_on=["bad"])
    outcome = _run([_part(["bad", "good", "bad"], rows=[0, 1, 2]), _part(["bad"], rows=[9])], encoder)
    assert sorted(_failed(outcome)) == [(0, 0, "encode_failed"), (0, 2, "encode_failed"), (1, 9, "encode_failed")]
