"""What the supervisor tells a worker at its start; passed on as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

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
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> WorkerSpec:
        values = json.loads(text)
        model = ModelSpec(**values.pop("model"))
        return WorkerSpec(model=model, cores=tuple(values.pop("cores")), **values)
