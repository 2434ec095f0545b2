"""Where rows lie in a segment. Pure arithmetic, shared by client, router and worker; all three check with it.

A segment has no header: it is rooms from byte 0 to its end, each beginning at a multiple of ALIGN. A room is `rows` times
`row_bytes(dim, dtype)`, little-endian, C order; row i of a room at `offset` lies at `offset + i * row_bytes(dim, dtype)`.

| dtype    | a row                                                        | a value is                    |
|----------|--------------------------------------------------------------|-------------------------------|
| float32  | dim × float32                                                | itself                        |
| float16  | dim × float16                                                | itself                        |
| int8     | scale float32, shift float32, dim × int8                     | code × scale + shift          |
| uint8    | scale float32, shift float32, dim × uint8                    | code × scale + shift          |
| binary   | ⌈dim / 8⌉ × int8: ubinary's bytes minus 128                  | positive or not               |
| ubinary  | ⌈dim / 8⌉ × uint8, the first value in the highest bit        | positive or not               |

Every row is filled up to a multiple of four bytes.
"""

from __future__ import annotations

from typing import Literal, get_args

Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
DTYPES: tuple[str, ...] = get_args(Dtype)
ALIGN = 64  # a cache line of x86 and of most ARM cores: two workers never write to one line of different rooms
ITEM_BYTES = 4
CODES_AT = 8  # of int8 and uint8: behind scale and shift


def row_bytes(dim: int, dtype: Dtype = "float32") -> int:
    """Bytes of one row."""
    if dtype == "float32":
        return dim * ITEM_BYTES
    if dtype == "float16":
        n = 2 * dim
    elif dtype in ("int8", "uint8"):
        n = CODES_AT + dim
    else:
        n = -(-dim // 8)
    return -(-n // ITEM_BYTES) * ITEM_BYTES


def room_bytes(rows: int, dim: int, dtype: Dtype = "float32") -> int:
    """Bytes of a room of `rows` rows."""
    return rows * row_bytes(dim, dtype)


def aligned(n: int) -> int:
    """The least multiple of ALIGN that is not below n."""
    return -(-n // ALIGN) * ALIGN


def fits(offset: int, n: int, size: int) -> bool:
    """Whether [offset, offset + n) lies inside a segment of `size` bytes.

    Written without the sum offset + n, which overflows in languages with fixed integers (the bug class of Triton's
    CVE-2025-23319): clients in C copy this line.
    """
    return n >= 0 and 0 <= offset <= size and n <= size - offset and offset % ITEM_BYTES == 0
