"""One job: texts to tokens, micro-batches through the encoder, each row written at its place. No socket, no clock.

Rules
1. Bounds are checked here again, whatever the router has checked: a pointer is trusted by nobody.
2. A row is written once, whole and in its final form; a row that failed is not written at all.
3. What goes wrong with one row is that row's failure; the other rows of the job get their vectors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedpool.errors import EmbedpoolError, EncodeFailed, ProtocolError, TextTooLong
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
            rows += _rows(number, part, model, places, open_segment, outcome)
        except EmbedpoolError as error:
            outcome.failures += [Failure(number, row, error.code, error.message) for row in part.rows]
    for batch in micro_batches([len(row.tokens) for row in rows]):
        _run([rows[i] for i in batch.rows], batch.width, model.encoder, outcome)
    outcome.payload = b"".join(places.tobytes() for places in inline)
    return outcome


def _rows(
    number: int, part: Part, model: Model, places: Vectors | None, open_segment: Callable[[str, int], Any], out: Outcome
) -> list[_Row]:
    prompt = model.prompt(part.prompt_name)
    texts = [prompt + text for text in part.texts] if prompt else part.texts
    tokens = model.encoder.tokens(texts, truncate=part.truncate)
    mapped = open_segment(part.segment, part.segment_bytes) if places is None else None
    rows = []
    for i, (row, ids) in enumerate(zip(part.rows, tokens, strict=True)):
        if len(ids) > model.max_tokens:
            reason = f"text {row} has {len(ids)} tokens, the model reads {model.max_tokens}: shorten it or let truncate be true"
            out.failures.append(Failure(number, row, TextTooLong.code, reason))
            continue
        place = places[i] if places is not None else _place(mapped, part, row)
        out.tokens[number] += len(ids)
        rows.append(_Row(number, row, ids, place, part.normalize))
    return rows


def _place(mapped: Any, part: Part, row: int) -> Vectors:
    width = room_bytes(1, part.dim)
    offset = part.offset + row * width
    if row < 0 or not fits(offset, width, part.segment_bytes):
        raise ProtocolError(f"row {row} lies outside its segment")
    place: Vectors = mapped.array(offset, width // ITEM_BYTES)
    return place


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
        out.failures.append(Failure(batch[0].part, batch[0].row, EncodeFailed.code, reason))
        return
    for row, vector in zip(batch, vectors, strict=True):
        if not _write(row, vector):
            reason = f"the vector of text {row.row} is not finite: this model cannot embed it"
            out.failures.append(Failure(row.part, row.row, EncodeFailed.code, reason))


def _write(row: _Row, vector: Vectors) -> bool:
    """Cuts to the room's dimension, then normalises (in this order: Matryoshka vectors are not of unit length when cut)."""
    vector = vector[: len(row.place)]
    square = float(np.dot(vector, vector))  # not finite if any value is not
    if not math.isfinite(square):
        return False
    if row.normalize and square > 0.0:
        np.divide(vector, math.sqrt(square), out=row.place)
    else:
        row.place[:] = vector
    return True
