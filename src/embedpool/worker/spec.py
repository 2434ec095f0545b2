"""What a worker must know at its start: the same for all of a pool, passed to the forkserver as JSON, but for its number, cores
and GPU, which come with each fork."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from embedpool.models.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """`cores` () leaves the worker unpinned. `device` is its GPU's number, of `gpus` that there are; 0 of 0 if none is used."""

    worker: int = 0
    endpoint: str
    segments: str
    cores: tuple[int, ...] = ()
    threads: int
    gpus: int = 0
    device: int = 0
    model: ModelSpec
    log_format: str = "auto"

    def forked(self, worker: int, index: int, cores: tuple[int, ...]) -> WorkerSpec:
        """Of one worker: the places of a pool take turns with its GPUs."""
        return replace(self, worker=worker, cores=cores, device=index % max(self.gpus, 1))

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str) -> WorkerSpec:
        return msgspec.json.decode(text, type=WorkerSpec)
