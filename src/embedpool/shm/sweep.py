"""What a killed server leaves of its segments. Apart from segment.py because the supervisor needs neither mmap nor numpy."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".segment"


def sweep(directory: Path) -> int:
    """Unlinks every segment in a directory whose server is gone; returns how many. The caller holds the pool's lock."""
    found = list(directory.glob("*" + SUFFIX))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)
