"""What a worker must know of a model. Made once by `resolve`, in a process of its own; passed on as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

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
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        return msgspec.json.decode(text, type=ModelSpec)
