"""One job: texts to tokens, micro-batches through the encoder, each row written at its place. No socket, no clock.

Rules
1. Bounds are checked here again, whatever the router has checked: a pointer is trusted by nobody.
2. A row is written once, whole and in its final form; a row that failed is not written at all.
3. What goes wrong with one row is that row's failure; the other rows of the job get their vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedpool.errors import BadDimension, EmbedpoolError, EncodeFailed, ProtocolError, TextTooLong
from embedpool.models.encoding import Cut, Encoder, Vectors
from embedpool.models.spec import ModelSpec
from embedpool.protocol import Failure, Job, Part
from embedpool.shm.layout import fits, row_bytes
from embedpool.worker.batching import micro_batches
from embedpool.worker.formats import NotFinite, write

log = logging.getLogger("embedpool.worker")

Place = NDArray[np.uint8]  # the bytes of one row
Run = Callable[[Sequence[Sequence[int]], int], Vectors]
Tokens = tuple[int, ...]
Known = dict[Tokens, NDArray[Any]]  # vectors as the model gives them


@dataclass(slots=True)
class Outcome:
    """`tokens` has one count per part; `payload` the inline rows of all parts in order; `known` the model's vectors,
    for jobs that repeat this one."""

    tokens: list[int]
    failures: list[Failure] = field(default_factory=list)
    payload: bytes = b""
    known: Known = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class _Row:
    number: int  # of its part
    part: Part
    row: int
    tokens: list[int]
    place: Place


Group = tuple[Tokens, list[_Row]]  # rows that get one vector


@dataclass(frozen=True, slots=True)
class Model:
    """The encoder with its spec."""

    encoder: Encoder
    spec: ModelSpec

    def with_prompts(self, part: Part) -> Sequence[str]:
        """The texts as the model is to read them."""
        name = self.spec.default_prompt if part.prompt_name is None else part.prompt_name
        if part.titles:
            titled, untitled = self.spec.titled.get(name, ""), self.spec.prompts.get(name, "")
            pairs = zip(part.titles, part.texts, strict=True)
            return [(titled.replace("{title}", title) if title else untitled) + text for title, text in pairs]
        prompt = self.spec.prompts.get(name, "") if part.prompt is None else part.prompt
        return [prompt + text for text in part.texts] if prompt else part.texts


def run_job(
    job: Job, model: Model, open_segment: Callable[[str, int], Any], run: Run | None = None, known: Known | None = None
) -> Outcome:
    """Writes every row's vector. `open_segment(name, bytes)` gives the mapping, with a method room(offset, bytes). `run` is
    called in place of the encoder's, and not for tokens whose vectors are `known`."""
    run = run or model.encoder.run
    outcome = Outcome([0] * len(job.parts))
    rows: list[_Row] = []
    inline: list[Place] = []
    for number, part in enumerate(job.parts):
        places = np.zeros((len(part.rows), row_bytes(part.dim, part.dtype)), np.uint8) if not part.segment else None
        if places is not None:
            inline.append(places)
        try:
            rows += _rows(number, part, model, _places(part, places, open_segment), outcome)
        except EmbedpoolError as error:
            outcome.failures += [Failure(number, max(row, 0), error.code, error.message) for row in part.rows]
    groups = list(_alike(rows).items())
    if known:
        groups = [group for group in groups if not _repeated(group, known, model, outcome)]
    spec = model.spec
    widths = [spec.width(len(tokens)) for tokens, _ in groups]
    for batch in micro_batches(widths, alone=spec.one_by_one, tokens=spec.batch_tokens):
        _run([groups[i] for i in batch.rows], batch.width, model, run, outcome)
    outcome.payload = b"".join(places.tobytes() for places in inline)
    return outcome


def _places(part: Part, inline: Place | None, open_segment: Callable[[str, int], Any]) -> list[Place]:
    """Where each row goes. Raises EmbedpoolError, and then nothing of the part is written."""
    if inline is not None:
        return list(inline)
    width = row_bytes(part.dim, part.dtype)
    offsets = [part.offset + row * width for row in part.rows]
    for row, offset in zip(part.rows, offsets, strict=True):
        if row < 0 or not fits(offset, width, part.segment_bytes):
            raise ProtocolError(f"row {row} lies outside its segment")
    mapped = open_segment(part.segment, part.segment_bytes)
    return [mapped.room(offset, width) for offset in offsets]


def _rows(number: int, part: Part, model: Model, places: list[Place], out: Outcome) -> list[_Row]:
    cut: Cut = "right" if part.truncate is True else part.truncate or ""
    tokens = _tokens(model.encoder, model.with_prompts(part), cut)
    longest = model.spec.max_tokens
    rows = []
    for row, ids, place in zip(part.rows, tokens, places, strict=True):
        if ids is None:
            _failed(out, number, row, EncodeFailed.code, f"text {row} could not be turned into tokens: see the worker's log")
        elif len(ids) > longest:
            reason = f"text {row} has {len(ids)} tokens, the model reads {longest}: shorten it or let truncate be true"
            _failed(out, number, row, TextTooLong.code, reason)
        else:
            out.tokens[number] += len(ids)
            rows.append(_Row(number, part, row, ids, place))
    return rows


def _alike(rows: list[_Row]) -> dict[Tokens, list[_Row]]:
    """The rows by their tokens, whoever asked for them and in whatever form: equal ones are computed once."""
    groups: dict[Tokens, list[_Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.tokens), []).append(row)
    return groups


def _repeated(group: Group, known: Known, model: Model, out: Outcome) -> bool:
    """Writes rows whose vector is known; False if it is not."""
    vector = known.get(group[0])
    if vector is not None:
        _write(group, vector, model, out)
    return vector is not None


def _failed(out: Outcome, part: int, row: int, code: str, reason: str) -> None:
    out.failures.append(Failure(part, row, code, reason))


def _tokens(encoder: Encoder, texts: Sequence[str], cut: Cut) -> Sequence[list[int] | None]:
    """Token ids per text; None for one that the tokenizer cannot take."""
    try:
        return encoder.tokens(texts, cut)
    except Exception:  # whatever the library raises, the other texts get their vectors
        log.exception("%d texts could not be turned into tokens together", len(texts))
    if len(texts) == 1:
        return [None]
    return [ids for text in texts for ids in _tokens(encoder, [text], cut)]


def _run(batch: list[Group], width: int, model: Model, run: Run, out: Outcome) -> None:
    try:
        vectors = run([tokens for tokens, _ in batch], width)
    except Exception:  # whatever the runtime raises, the worker lives on and the rows are answered
        log.exception("a run of %d rows of %d tokens raised", len(batch), width)
        if len(batch) > 1:
            for group in batch:
                _run([group], model.spec.width(len(group[0])), model, run, out)
            return
        for row in batch[0][1]:
            reason = f"the model could not be run on text {row.row}: see the worker's log"
            _failed(out, row.number, row.row, EncodeFailed.code, reason)
        return
    for group, vector in zip(batch, vectors, strict=True):
        _write(group, vector, model, out)


def _write(group: Group, vector: NDArray[Any], model: Model, out: Outcome) -> None:
    """One vector to all who want it, in the form in which each wants it."""
    tokens, rows = group
    out.known[tokens] = vector
    for row in rows:
        part = row.part
        if len(vector) < part.dim:
            reason = f"{part.dim} dimensions were asked for, the model gives {len(vector)}"
            _failed(out, row.number, row.row, BadDimension.code, reason)
            continue
        try:
            write(row.place, vector, part.dim, part.dtype, part.normalize, model.spec.output_range)
        except NotFinite as error:
            _failed(out, row.number, row.row, EncodeFailed.code, f"the vector of text {row.row} {error}")
