"""A session's segment as the client uses it: rooms out, arrays in, rooms back when arrays are collected.

Rules
1. A room belongs to a Lease. It is free again when the last holder of its lease is gone: the open request that its writer
   answers, or an array that looks at it.
2. Arrays can be collected at any time and in any thread, also while a lock is held. Collecting therefore only appends to a
   deque; the allocator reads it at its next call.
3. Arrays keep the mapping alive, not the session: `close` gives the session up and leaves every array valid.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedpool.shm.layout import Dtype, room_bytes
from embedpool.shm.room import Rooms
from embedpool.shm.rows import view

Vectors = NDArray[Any]  # see shm.rows.view


class Mapping(Protocol):
    """What an arena needs of a mapped segment (shm.segment.ReadMap, or a test's)."""

    size: int

    def room(self, offset: int, n: int) -> NDArray[np.uint8]: ...
    def close(self) -> None: ...


class Lease:
    """Holds one room. Dropping the last reference frees it."""

    __slots__ = ("_freed", "arena", "offset")

    def __init__(self, arena: Arena, offset: int, freed: deque[int]) -> None:
        self.offset = offset
        self._freed = freed  # from here on the room comes back, whatever interrupts us
        self.arena = arena

    def __del__(self) -> None:
        if hasattr(self, "_freed"):
            self._freed.append(self.offset)


class Arena:
    """Not thread-safe but for the collection of leases and arrays; the client locks around it."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._rooms = Rooms(mapping.size)
        self._freed: deque[int] = deque()
        self._held: dict[int, tuple[weakref.ref[Any], Lease]] = {}

    def take(self, n: int) -> Lease | None:
        """A room of n bytes, or None where arrays that are still held leave no gap that large."""
        while self._freed:
            self._rooms.give_back(self._freed.popleft())
        offset = self._rooms.take(n)
        return None if offset is None else Lease(self, offset, self._freed)

    def array(self, lease: Lease, offset: int, rows: int, dim: int, dtype: Dtype) -> Vectors:
        """The rows at `offset` (see shm.rows.view), read-only; the lease lives as long as the array or any view of it."""
        root = self._mapping.room(offset, room_bytes(rows, dim, dtype))
        # numpy collapses chains of views: the base of every view of `root` is `root` itself, so its end is the end of all.
        key, held = id(root), self._held
        held[key] = (weakref.ref(root, lambda _: held.pop(key, None)), lease)
        return view(root, rows, dim, dtype)

    @property
    def taken_bytes(self) -> int:
        while self._freed:
            self._rooms.give_back(self._freed.popleft())
        return self._rooms.taken_bytes

    def close(self) -> None:
        self._mapping.close()
