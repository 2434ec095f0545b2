"""What a worker must know at its start: the same for all of a pool, passed to the forkserver as JSON, but for its number and
cores, which come with each fork."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from embedpool.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """`cores` () leaves the worker unpinned."""

    worker: int = 0
    endpoint: str
    segments: str
    cores: tuple[int, ...] = ()
    threads: int
    model: ModelSpec
    log_format: str = "auto"

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str) -> WorkerSpec:
        return msgspec.json.decode(text, type=WorkerSpec)
