"""A model without weights: a vector is drawn from the text's hash. `--model echo` or `--model echo:DIM`.

It computes in microseconds what a real model computes in milliseconds, so that what is measured is the pool itself; and
its vectors tell any two texts apart, so that a test sees at once whether a row came to the wrong place.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np

from embedpool.errors import ModelError
from embedpool.models.encoding import Cut, Vectors
from embedpool.models.spec import ModelSpec

DEFAULT_DIM = 384
MAX_TOKENS = 512  # a token is two UTF-8 bytes


class EchoEncoder:
    """An Encoder whose token ids are the text's bytes, two to a token."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def tokens(self, texts: Sequence[str], cut: Cut) -> list[list[int]]:
        return [_tokens(text, self.spec.max_tokens, cut) for text in texts]

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:  # noqa: ARG002 - the protocol has it
        return np.array([echo_vector(row, self.spec.dim) for row in rows])

    def interrupt(self) -> None:
        """A run takes microseconds."""


def _tokens(text: str, most: int, cut: Cut) -> list[int]:
    data = text.encode()
    if cut:
        data = data[: 2 * most] if cut == "right" else data[-2 * most :]
    return memoryview(data + b"\0" * (len(data) % 2)).cast("H").tolist()


def echo_vector(tokens: Sequence[int], dim: int) -> Vectors:
    """float32[dim] in [-1, 1), the same for the same tokens on every machine."""
    stream = hashlib.shake_128(array("H", tokens)).digest(2 * dim)
    return np.frombuffer(stream, "<i2") * np.float32(2.0**-15)


def echo_spec(name: str) -> ModelSpec:
    """The spec for "echo" or "echo:DIM"; raises ModelError for another DIM than 1 to 65536."""
    _, _, wanted = name.partition(":")
    if wanted and not (wanted.isdecimal() and 1 <= int(wanted) <= 65536):
        raise ModelError(f"{name}: the dimension of echo is a number from 1 to 65536")
    dim = int(wanted) if wanted else DEFAULT_DIM
    return ModelSpec(
        name=f"echo:{dim}",
        dim=dim,
        max_tokens=MAX_TOKENS,
        prompts={"query": "query: ", "document": ""},
        fingerprint=f"echo-{dim}-1",
    )
