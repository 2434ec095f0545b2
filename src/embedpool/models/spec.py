"""What a worker must know of a model. Made once by `resolve`, in a process of its own; passed on as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from embedpool.protocol import ModelCard

Pooling = Literal["none", "mean", "cls", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """`onnx` "" is the echo model, which has no files. `pooling` "none": the graph gives one vector per text."""

    name: str
    onnx: str = ""
    tokenizer: str = ""
    output: str = ""
    pooling: Pooling = "none"
    dim: int
    max_tokens: int
    lowercase: bool = False
    pad_id: int = 0
    prompts: dict[str, str]
    default_prompt: str = ""  # a name in prompts, or ""
    fingerprint: str

    def card(self) -> ModelCard:
        """The part that clients see."""
        return ModelCard(self.name, self.dim, self.max_tokens, self.fingerprint, tuple(self.prompts))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        values = json.loads(text)
        return ModelSpec(**{f.name: values[f.name] for f in fields(ModelSpec)})
