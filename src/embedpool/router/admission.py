"""What is taken in, and what is refused at once and why. Pure; called by the core for every `embed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from embedpool.protocol import Embed, ModelCard, Refused
from embedpool.router.queue import Queue
from embedpool.router.state import Session
from embedpool.shm.layout import fits, room_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Limits and rules from the configuration (config.py has their help and units)."""

    slice_ms: float = 20.0
    hang_s: float = 10.0
    interactive_rows: int = 8
    max_request_rows: int = 8192
    max_text_chars: int = 1_000_000
    max_inline_bytes: int = 64 << 20
    max_queue_rows: int = 100_000
    max_queue_bytes: int = 256 << 20
    max_session_requests: int = 4096

    def is_interactive(self, ask: Embed) -> bool:
        if ask.priority == "auto":
            return len(ask.texts) <= self.interactive_rows
        return ask.priority == "interactive"

    def invalid(self, model: ModelCard, ask: Embed, segment_bytes: int) -> Refused | None:
        """Why this request can never succeed as it is, or None."""
        if ask.model and ask.model != model.name:
            return Refused(ask.id, "unknown_model", f"no model {ask.model[:100]!r} here: this pool serves {model.name}")
        if ask.dim > model.dim:
            return Refused(ask.id, "bad_dimension", f"dim {ask.dim} is larger than the {model.dim} of {model.name}")
        if ask.prompt_name is not None and ask.prompt_name not in model.prompts:
            known = ", ".join(model.prompts) or "none"
            return Refused(ask.id, "unknown_prompt", f"no prompt {ask.prompt_name[:100]!r}: {model.name} has {known}")
        reason = impossible(model, ask)
        if reason:
            return Refused(ask.id, "bad_request", reason)
        return self._too_large(model, ask, segment_bytes)

    def _too_large(self, model: ModelCard, ask: Embed, segment_bytes: int) -> Refused | None:
        rows = len(ask.texts)
        if rows > self.max_request_rows:
            return Refused(
                ask.id,
                "too_large",
                f"{rows} texts in one request, at most {self.max_request_rows}: use embed_documents or send several",
            )
        before = (len(ask.prompt or "") + max(map(len, ask.titles), default=0)) if ask.prompt or ask.titles else 0
        longest = max(map(len, ask.texts), default=0)
        if before > self.max_text_chars:
            return Refused(ask.id, "too_large", f"prompt and title have {before} characters, at most {self.max_text_chars}")
        if longest > self.max_text_chars:
            row = next(i for i, text in enumerate(ask.texts) if len(text) == longest)
            return Refused(ask.id, "too_large", f"text {row} has {longest} characters, at most {self.max_text_chars}", row=row)
        needed = room_bytes(rows, ask.dim or model.dim, ask.dtype)
        if ask.offset is None:
            if needed > self.max_inline_bytes:
                return Refused(ask.id, "too_large", f"{needed} bytes of vectors inline, at most {self.max_inline_bytes}")
        elif not fits(ask.offset, needed, segment_bytes):
            return Refused(
                ask.id,
                "bad_request",
                f"{needed} bytes at offset {ask.offset} do not lie inside the session's segment of {segment_bytes} bytes",
            )
        return None

    def too_full(
        self, ask: Embed, nbytes: int, queue: Queue, session: Session, backlog_ms: Callable[[], float]
    ) -> Refused | None:
        """Why there is no room for this request now, or None."""
        if len(session.open) >= self.max_session_requests:
            reason = f"{len(session.open)} requests of this session are open"
        elif ask.offset is None and session.inline_bytes >= self.max_inline_bytes:
            reason = f"{session.inline_bytes} bytes of inline vectors of this session are open"
        elif not _has_room(len(ask.texts), session.rows, queue.rows, self.max_queue_rows):
            reason = f"{queue.rows} texts are waiting, {session.rows} of them of this session"
        elif not _has_room(nbytes, session.nbytes, queue.nbytes, self.max_queue_bytes):
            reason = f"{queue.nbytes} bytes of texts are waiting, {session.nbytes} of them of this session"
        else:
            return None
        return _overloaded(ask, reason, backlog_ms())


def too_late(ask: Embed, own_ms: float, wait_ms: float, late_ms: float) -> Refused:
    """To a request that takes so long, and waits so long before, and so would be answered so much too late."""
    reason = f"an answer would take about {own_ms + wait_ms:.0f} ms, too long for the budget of {ask.budget_ms:.0f} ms"
    return _overloaded(ask, reason, late_ms)


def _has_room(more: int, own: int, all: int, most: int) -> bool:
    """Whether a session may have so much more waiting: as long as it has no more than it leaves to others, so that one alone
    may fill half of what there is, two together two thirds, and somebody who has nothing waiting always finds room. (The
    thresholds by which switches share their buffers: Choudhury and Hahne, 1998.) The first in an empty queue always fits."""
    return not all or (all + more <= most and (not own or own + more <= most - all))


def impossible(model: ModelCard, ask: Embed) -> str:
    """What contradicts itself in a request's options, or the model cannot give; "" for nothing."""
    if ask.dtype not in model.dtypes:
        return f"{model.name} gives uint8 of an unknown range: ask for dtype uint8, or start the pool with --output-range"
    if ask.prompt is not None and ask.prompt_name is not None:
        return "prompt and prompt_name are both given: one of them"
    if not ask.titles:
        return ""
    if len(ask.titles) != len(ask.texts):
        return f"{len(ask.titles)} titles for {len(ask.texts)} texts"
    if ask.prompt_name not in model.titled:
        which = ", ".join(model.titled)
        return f"titles go with prompt_name {which}" if which else f"no prompt of {model.name} takes a title"
    return ""


def _overloaded(ask: Embed, reason: str, retry_after_ms: float) -> Refused:
    return Refused(ask.id, "overloaded", reason, retryable=True, retry_after_ms=max(1, round(retry_after_ms)))
