"""Free space of one segment: first fit over a sorted list of gaps. Pure; owned by one client, which locks around it.

Lowest address first keeps reusing the same few pages, so that a client with small requests touches little memory.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from embedpool.shm.layout import aligned


@dataclass(slots=True)
class Rooms:
    """Rules: gaps are sorted, disjoint, never touching; a room taken is in no gap; a room is given back once."""

    size: int
    _gaps: list[tuple[int, int]] = field(init=False)  # (offset, bytes)
    _taken: dict[int, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._gaps = [(0, self.size)] if self.size else []

    @property
    def taken_bytes(self) -> int:
        return sum(self._taken.values())

    def take(self, n: int) -> int | None:
        """The offset of a room of n bytes, or None where no gap is that large."""
        wanted = max(aligned(n), aligned(1))
        for i, (offset, free) in enumerate(self._gaps):
            if free >= wanted:
                if free == wanted:
                    del self._gaps[i]
                else:
                    self._gaps[i] = (offset + wanted, free - wanted)
                self._taken[offset] = wanted
                return offset
        return None

    def give_back(self, offset: int) -> None:
        """Raises KeyError for a room that is not taken; nothing changes then."""
        n = self._taken.pop(offset)
        i = bisect_left(self._gaps, (offset, 0))
        if i < len(self._gaps) and self._gaps[i][0] == offset + n:
            n += self._gaps.pop(i)[1]
        if i > 0 and sum(self._gaps[i - 1]) == offset:
            start, before = self._gaps.pop(i - 1)
            offset, n = start, before + n
        insort(self._gaps, (offset, n))

    def check(self) -> None:
        """The rules above, for tests."""
        spans = sorted([*self._gaps, *self._taken.items()])
        end = 0
        for offset, n in spans:
            assert offset == end, f"hole or overlap at {end}: next is {offset}"
            assert n > 0
            end = offset + n
        assert end == self.size
        for (a, n), (b, _) in zip(self._gaps, self._gaps[1:], strict=False):
            assert a + n < b, "touching gaps were not joined"
