"""Memory of processes as the kernel counts it: PSS, in which a page shared by n processes counts 1/n for each; and giving
back what is free."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path


def pss_bytes(pid: int) -> int:
    """The process's proportional set size from /proc/PID/smaps_rollup (proc(5)); 0 if it cannot be read."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def give_back() -> None:
    """Returns freed memory to the system, which glibc otherwise keeps after something large was loaded (malloc_trim(3))."""
    with contextlib.suppress(AttributeError):  # a C library that has no such call
        ctypes.CDLL(None).malloc_trim(0)
