"""One job: texts to tokens, micro-batches through the encoder, each row written at its place. No socket, no clock.

Rules
1. Bounds are checked here again, whatever the router has checked: a pointer is trusted by nobody.
2. A row is written once, whole and in its final form; a row that failed is not written at all.
3. What goes wrong with one row is that row's failure; the other rows of the job get their vectors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedpool.errors import BadDimension, EmbedpoolError, EncodeFailed, ProtocolError, TextTooLong
from embedpool.models.encoding import Encoder, Vectors
from embedpool.protocol import Failure, Job, Part
from embedpool.shm.layout import ITEM_BYTES, fits, room_bytes
from embedpool.worker.batching import micro_batches

log = logging.getLogger("embedpool.worker")


@dataclass(slots=True)
class Outcome:
    """`tokens` has one count per part; `payload` the inline rows of all parts in order."""

    tokens: list[int]
    failures: list[Failure] = field(default_factory=list)
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class _Row:
    part: int
    row: int
    tokens: list[int]
    place: Vectors  # float32[dim], writable
    normalize: bool


@dataclass(frozen=True, slots=True)
class Model:
    """The encoder with what its spec says of prompts and lengths."""

    encoder: Encoder
    prompts: Mapping[str, str]
    default_prompt: str
    max_tokens: int

    def prompt(self, name: str | None) -> str:
        return self.prompts.get(self.default_prompt if name is None else name, "")


def run_job(job: Job, model: Model, open_segment: Callable[[str, int], Any]) -> Outcome:
    """Writes every row's vector. `open_segment(name, bytes)` gives the mapping, with a method array(offset, count)."""
    outcome = Outcome([0] * len(job.parts))
    rows: list[_Row] = []
    inline: list[Vectors] = []
    for number, part in enumerate(job.parts):
        places = np.zeros((len(part.rows), part.dim), np.float32) if not part.segment else None
        if places is not None:
            inline.append(places)
        try:
            rows += _rows(number, part, model, _places(part, places, open_segment), outcome)
        except EmbedpoolError as error:
            outcome.failures += [Failure(number, max(row, 0), error.code, error.message) for row in part.rows]
    for batch in micro_batches([len(row.tokens) for row in rows]):
        _run([rows[i] for i in batch.rows], batch.width, model.encoder, outcome)
    outcome.payload = b"".join(places.tobytes() for places in inline)
    return outcome


def _places(part: Part, inline: Vectors | None, open_segment: Callable[[str, int], Any]) -> list[Vectors]:
    """Where each row goes: float32[dim] each. Raises EmbedpoolError, and then nothing of the part is written."""
    if inline is not None:
        return list(inline)
    width = room_bytes(1, part.dim)
    offsets = [part.offset + row * width for row in part.rows]
    for row, offset in zip(part.rows, offsets, strict=True):
        if row < 0 or not fits(offset, width, part.segment_bytes):
            raise ProtocolError(f"row {row} lies outside its segment")
    mapped = open_segment(part.segment, part.segment_bytes)
    return [mapped.array(offset, width // ITEM_BYTES) for offset in offsets]


def _rows(number: int, part: Part, model: Model, places: list[Vectors], out: Outcome) -> list[_Row]:
    prompt = model.prompt(part.prompt_name)
    texts = [prompt + text for text in part.texts] if prompt else part.texts
    tokens = _tokens(model.encoder, texts, part.truncate)
    rows = []
    for row, ids, place in zip(part.rows, tokens, places, strict=True):
        if ids is None:
            _failed(out, number, row, EncodeFailed.code, f"text {row} could not be turned into tokens: see the worker's log")
        elif len(ids) > model.max_tokens:
            reason = f"text {row} has {len(ids)} tokens, the model reads {model.max_tokens}: shorten it or let truncate be true"
            _failed(out, number, row, TextTooLong.code, reason)
        else:
            out.tokens[number] += len(ids)
            rows.append(_Row(number, row, ids, place, part.normalize))
    return rows


def _failed(out: Outcome, part: int, row: int, code: str, reason: str) -> None:
    out.failures.append(Failure(part, row, code, reason))


def _tokens(encoder: Encoder, texts: Sequence[str], truncate: bool) -> Sequence[list[int] | None]:
    """Token ids per text; None for one that the tokenizer cannot take."""
    try:
        return encoder.tokens(texts, truncate=truncate)
    except Exception:  # whatever the library raises, the other texts get their vectors
        log.exception("%d texts could not be turned into tokens together", len(texts))
    if len(texts) == 1:
        return [None]
    return [ids for text in texts for ids in _tokens(encoder, [text], truncate)]


def _run(batch: list[_Row], width: int, encoder: Encoder, out: Outcome) -> None:
    try:
        vectors = encoder.run([row.tokens for row in batch], width)
    except Exception:  # whatever the runtime raises, the worker lives on and the rows are answered
        log.exception("a run of %d rows of %d tokens raised", len(batch), width)
        if len(batch) > 1:
            for row in batch:
                _run([row], len(row.tokens), encoder, out)
            return
        reason = f"the model could not be run on text {batch[0].row}: see the worker's log"
        _failed(out, batch[0].part, batch[0].row, EncodeFailed.code, reason)
        return
    for row, vector in zip(batch, vectors, strict=True):
        if len(vector) < len(row.place):
            reason = f"{len(row.place)} dimensions were asked for, the model gives {len(vector)}"
            _failed(out, row.part, row.row, BadDimension.code, reason)
        elif not _write(row, vector):
            reason = f"the vector of text {row.row} is not finite: this model cannot embed it"
            _failed(out, row.part, row.row, EncodeFailed.code, reason)


def _write(row: _Row, vector: Vectors) -> bool:
    """Cuts to the room's dimension, then normalises (in this order: Matryoshka vectors are not of unit length when cut)."""
    # In float64: the square of a float32 may be none, and the length is right to the last digit.
    whole = vector[: len(row.place)].astype(np.float64)
    square = float(np.dot(whole, whole))  # not finite if any value is not
    if not math.isfinite(square):
        return False
    if row.normalize and square > 0.0:
        whole /= math.sqrt(square)
    row.place[:] = whole
    return True
