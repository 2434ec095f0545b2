"""Memory of the pool's processes, from this machine's /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from embedpool.memory import pss_bytes

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory(pids: Iterable[int]) -> dict[int, int]:
    """Bytes by process id: proportional set size, or the resident one where only that may be read (of another user's process).
    Ids that are not a pool's here are left out: the pool may run in a container, or elsewhere."""
    return {pid: found for pid in pids if _is_ours(pid) and (found := pss_bytes(pid) or _resident_bytes(pid))}


def _is_ours(pid: int) -> bool:
    try:
        return pid > 0 and b"embedpool" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _resident_bytes(pid: int) -> int:
    """From proc_pid_statm(5), which anybody may read; 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0
