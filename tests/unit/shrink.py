"""Makes a failing sequence short, by delta debugging. Pure; knows nothing of what the items mean.

Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28 (2), 2002.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Shrinker(Generic[T]):
    """`fails` plays a sequence and gives what is true if it fails; `simpler` gives what may stand in an item's place, the
    simplest first; `replays` is how many more sequences may be played."""

    fails: Callable[[list[T]], object]
    simpler: Callable[[T], Iterable[T]]
    replays: int

    def smallest(self, items: list[T]) -> list[T]:
        """A sequence that fails too. While there are replays left: without any one of its items, or with a simpler one in
        its place, it would not fail."""
        before: list[T] | None = None
        while items != before:
            before = items
            items = self._simplified(self._shortened(items))
        return items

    def _shortened(self, items: list[T]) -> list[T]:
        """Without pieces of a half of it, then of a quarter, down to one item; the last first, as it may rest on others."""
        size = len(items)
        while size:
            start = len(items)
            while start > 0:
                start = max(start - size, 0)
                items = self._if_failing(items[:start] + items[start + size :], items)
            size //= 2
        return items

    def _simplified(self, items: list[T]) -> list[T]:
        for i in range(len(items)):
            before: list[T] | None = None
            while items != before:
                before = items
                for simple in self.simpler(before[i]):
                    items = self._if_failing([*before[:i], simple, *before[i + 1 :]], before)
                    if items != before:
                        break
        return items

    def _if_failing(self, candidate: list[T], otherwise: list[T]) -> list[T]:
        if not self.replays:
            return otherwise
        self.replays -= 1
        return candidate if self.fails(candidate) else otherwise
