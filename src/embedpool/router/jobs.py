"""What goes into a job, and what comes out of it: between the core's records and the wire. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from embedpool import protocol as wire
from embedpool.protocol import Embed
from embedpool.router.state import Job, Slice
from embedpool.shm.layout import row_bytes


def message(job: Job, timed: bool = False) -> wire.Job:
    """The job as its worker is told of it."""
    return wire.Job(job.id, tuple([_part(piece) for piece in job.slices]), job.urgent, job.repeats, timed)


def _part(piece: Slice) -> wire.Part:
    request, ask = piece.request, piece.request.ask
    session = request.session
    texts = ask.texts if len(piece.rows) == 1 == len(ask.texts) else tuple([ask.texts[row] for row in piece.rows])
    return wire.Part(
        session.segment if ask.offset is not None else "",
        session.segment_bytes,
        ask.offset or 0,
        request.dim,
        piece.rows,
        texts,
        ask.prompt_name,
        ask.normalize,
        ask.truncate,
        ask.dtype,
        ask.prompt,
        tuple([ask.titles[row] for row in piece.rows]) if ask.titles else (),
    )


def rows_done(piece: Slice, job: Job, done: wire.Done, tokens: int, payload: memoryview) -> memoryview:
    """Books a slice's rows; returns the payload behind its inline rows."""
    request = piece.request
    request.begun_at = min(request.begun_at, job.began_at)
    request.tokenize_ms += done.tokenize_ms
    request.run_ms += max(0.0, done.run_ms - done.tokenize_ms)
    request.done_rows += len(piece.rows)
    request.tokens += tokens
    if request.inline is None:
        return payload
    width = row_bytes(request.dim, request.ask.dtype)
    for i, row in enumerate(piece.rows):
        request.inline[row * width : (row + 1) * width] = payload[i * width : (i + 1) * width]
    return payload[len(piece.rows) * width :]


def chars_of(ask: Embed) -> Iterable[int]:
    """How much the model has to read per row: the text with what is put before it. (The model's own prompts are short.)"""
    before = len(ask.prompt or "")
    if ask.titles:
        return [before + len(title) + len(text) for title, text in zip(ask.titles, ask.texts, strict=True)]
    return [before + len(text) for text in ask.texts] if before else map(len, ask.texts)
