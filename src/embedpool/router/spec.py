"""What the supervisor tells a router at its start; passed on as JSON."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from embedpool.protocol import ModelCard
from embedpool.router.admission import Admission


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """What the supervisor tells a router at its start."""

    endpoint: str
    workers_endpoint: str
    segments: str  # directory, "" for none
    model: ModelCard
    admission: Admission
    max_sessions: int
    max_segment_bytes: int
    max_shm_bytes: int
    max_request_bytes: int
    session_idle_s: float
    pool: dict[str, str]  # shown in status as it is
    log_format: str = "auto"
    trace_roots: bool = True  # whether what comes without a trace's context begins a trace, where there is a tracer

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str) -> RouterSpec:
        return msgspec.json.decode(text, type=RouterSpec)
