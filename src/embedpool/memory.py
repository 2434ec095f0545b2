"""Memory of processes as the kernel counts it: PSS, in which a page shared by n processes counts 1/n for each; and giving
back what is free."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGE_BYTES = 1 << 20  # mapping and touching so much takes 0.25 ms; a message of it holds seconds of work


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process. `pss_bytes` is None where only its owner may know it."""

    rss_bytes: int
    pss_bytes: int | None = None


def pss_bytes(pid: int) -> int:
    """The process's proportional set size from /proc/PID/smaps_rollup (proc(5)); 0 if it cannot be read."""
    return rollup(pid).get("Pss", 0)


def memory_of(pids: Iterable[int]) -> dict[int, Memory]:
    """Of those that are processes of embedpool here: a pool may run in another container, where numbers mean other processes.
    The resident size is anybody's to read (statm), the proportional one its owner's alone."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended just now
            if b"embedpool" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue
            rss = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            found[pid] = Memory(rss, rollup(pid).get("Pss"))
    return found


def rollup(pid: int) -> dict[str, int]:
    """The lines of /proc/PID/smaps_rollup (proc(5)) in bytes, by name: Pss, Pss_Anon, ...; {} if they cannot be read."""
    try:
        words = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in words if line[-1] == "kB"}


def give_back() -> None:
    """Returns freed memory to the system, which glibc otherwise keeps after something large was loaded (malloc_trim(3))."""
    with contextlib.suppress(AttributeError):  # a C library that has no such call
        ctypes.CDLL(None).malloc_trim(0)


def keep_little() -> None:
    """From now on what is LARGE_BYTES or more goes back to the system when it is freed, in every thread.

    glibc otherwise learns from each large block that is freed to keep as much, up to 32 MB, and twice that at the end of every
    arena (mallopt(3), dynamic threshold): peers' largest messages would decide how much a process keeps. A C library without
    mallopt is left as it is."""
    with contextlib.suppress(AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE_BYTES)
