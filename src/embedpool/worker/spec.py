"""What the supervisor tells a worker at its start; passed on as JSON."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from embedpool.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What the supervisor tells a worker at its start. `cores` () leaves the worker unpinned."""

    worker: int
    endpoint: str
    segments: str
    cores: tuple[int, ...]
    threads: int
    model: ModelSpec

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str) -> WorkerSpec:
        return msgspec.json.decode(text, type=WorkerSpec)
