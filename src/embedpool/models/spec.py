"""What a worker must know of a model. Made once by `artifact.prepare`, in a process of its own; passed on as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import msgspec

from embedpool.protocol import ModelCard
from embedpool.shm.layout import DTYPES

Pooling = Literal["none", "mean", "cls", "last"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """`directory` is the artifact's, "" for the echo model, which has no files.

    The graph's input is int64[batch, tokens] twice (ids and mask), its output one vector per text, float32 or `output` uint8;
    a uint8 value v then means low + v * (high - low) / 255 for the `output_range` (low, high), if that is known.
    `one_by_one`: values depend on what runs together, so each text runs alone. `unit_ms`: measured when it was prepared.
    `provider` with its `provider_options` computes it (models.providers), in matrices of a width that is a multiple of
    `width_step`, of about `batch_tokens` tokens each.
    """

    name: str
    directory: str = ""
    dim: int
    max_tokens: int
    lowercase: bool = False
    pad_id: int = 0
    prompts: dict[str, str]
    titled: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""  # a name in prompts, or ""
    pooling: str = ""  # for people: the graph does it
    output: Literal["float32", "uint8"] = "float32"
    output_range: tuple[float, float] | None = None
    one_by_one: bool = False
    precision: str = "fp32"
    provider: str = "cpu"
    provider_options: dict[str, str] = field(default_factory=dict)
    width_step: int = 1
    batch_tokens: int = 128
    unit_ms: float = 0.0
    fingerprint: str

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types in which vectors can be had: values of an unknown range can only be passed on as they are."""
        return ("uint8",) if self.output == "uint8" and self.output_range is None else DTYPES

    def width(self, tokens: int) -> int:
        """The columns of a matrix for rows of at most so many tokens."""
        return -(-max(tokens, 1) // self.width_step) * self.width_step

    def card(self) -> ModelCard:
        """The part that clients see."""
        return ModelCard(
            self.name,
            self.dim,
            self.max_tokens,
            self.fingerprint,
            tuple(self.prompts),
            self.dtypes,
            tuple(self.titled),
            self.precision,
            self.default_prompt,
            self.pooling,
        )

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str) -> ModelSpec:
        return msgspec.json.decode(text, type=ModelSpec)
