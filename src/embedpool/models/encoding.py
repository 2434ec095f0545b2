"""What a worker needs of a model, whatever computes it: OnnxEncoder, EchoEncoder, or a test's fake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[Any]  # float32, or uint8 as some graphs give it
Cut: TypeAlias = Literal["", "left", "right"]  # the side that a text loses if it is too long; "": none


class Interrupted(Exception):
    """A run was ended from outside; its rows have no vectors."""


class Encoder(Protocol):
    """What a worker needs of a model."""

    def tokens(self, texts: Sequence[str], cut: Cut) -> list[list[int]]:
        """Token ids per text; at most the model's maximum unless `cut` is ""."""

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:
        """float32 or uint8[len(rows), dim], one vector per row as the model gives it. No row is longer than `width`. Raises
        Interrupted."""

    def interrupt(self) -> None:
        """Ends the run that another thread is in, if any, soon."""
