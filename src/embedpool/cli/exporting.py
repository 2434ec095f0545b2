"""Metrics without HTTP, for `embedpool status`: on stdout, or in a file for node_exporter's textfile collector.

A pool that does not answer is a number as well, embedpool_up 0: an old file that nobody renews would look like a pool in good
health.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest, write_to_textfile

from embedpool.client import Client
from embedpool.errors import ConfigError, EmbedpoolError
from embedpool.memory import memory_of
from embedpool.metrics import pids, registry


def export(endpoint: str | None, textfile: Path | None, every_s: float | None) -> int:
    """Once, or every so many seconds until interrupted; exit status 1 if the pool does not serve. Raises ConfigError where the
    file cannot be written. It appears at once as a whole: the library writes another one beside it, and renames that."""
    while True:
        began_at = time.monotonic()
        status = _status(endpoint)
        found = registry(status, memory_of(pids(status)))
        if textfile is None:
            sys.stdout.write(generate_latest(found).decode())
            sys.stdout.flush()
        else:
            try:
                write_to_textfile(str(textfile), found)
            except OSError as error:
                raise ConfigError(f"cannot write {textfile}: {error.strerror}") from error
        if every_s is None:
            return 0 if status.get("state") in ("serving", "draining") else 1
        time.sleep(max(0.0, began_at + every_s - time.monotonic()))


def _status(endpoint: str | None) -> dict[str, Any]:
    """{} where no pool answers."""
    try:
        with Client(endpoint, segment_bytes=0, connect_timeout_s=1.0) as pool:
            found: dict[str, Any] = json.loads(pool.status())
    except ConfigError:
        raise
    except EmbedpoolError:
        return {}
    return found
