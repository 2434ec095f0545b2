"""Memory of processes as the kernel counts it: PSS, in which a page shared by n processes counts 1/n for each."""

from __future__ import annotations

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
