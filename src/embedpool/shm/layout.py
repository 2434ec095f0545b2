"""Where rows lie in a segment. Pure arithmetic, shared by client, router and worker; all three check with it.

A segment has no header: it is rooms from byte 0 to its end, each an array float32[rows, dim], C order, little-endian,
beginning at a multiple of ALIGN. Row i of a room at `offset` lies at `offset + i * dim * 4`.
"""

from __future__ import annotations

ALIGN = 64  # a cache line of x86 and of most ARM cores: two workers never write to one line of different rooms
ITEM_BYTES = 4


def room_bytes(rows: int, dim: int) -> int:
    """Bytes of float32[rows, dim]."""
    return rows * dim * ITEM_BYTES


def aligned(n: int) -> int:
    """The least multiple of ALIGN that is not below n."""
    return -(-n // ALIGN) * ALIGN


def fits(offset: int, n: int, size: int) -> bool:
    """Whether [offset, offset + n) lies inside a segment of `size` bytes.

    Written without the sum offset + n, which overflows in languages with fixed integers (the bug class of Triton's
    CVE-2025-23319): clients in C copy this line.
    """
    return n >= 0 and 0 <= offset <= size and n <= size - offset and offset % ITEM_BYTES == 0
