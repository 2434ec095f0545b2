"""`embedpool reload`: a running pool takes up its configuration, and its model's newest revision, without a pause."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from typing import Any

from embedpool.client import Client
from embedpool.errors import ConfigError, ModelError, NotRunning

LOOK_S = 0.1


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", help="the pool (default: EMBEDPOOL_ENDPOINT, or the one of this machine)")
    parser.add_argument("--wait", metavar="S", type=float, default=600.0, help="how long it may take [s] (default 600)")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.endpoint, segment_bytes=0, connect_timeout_s=1.0) as pool:
        before = json.loads(pool.status())
        _hang_up(int(before["pool"]["pid"]))
        after = _ended(pool, before["reload"]["count"], arguments.wait)
    if after["reload"]["state"] == "failed":
        raise ModelError(f"not reloaded, the pool goes on as before: {after['reload']['reason']}")
    model, same = after["model"], after["model"]["fingerprint"] == before["model"]["fingerprint"]
    what = "the same vectors as before" if same else f"new vectors: fingerprint {model['fingerprint']}"
    print(f"reloaded: {model['name']}, {len(after['workers'])} workers, {what}")
    return 0


def _hang_up(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGHUP)
    except ProcessLookupError:
        raise NotRunning(f"process {pid} has ended, or runs in another container: reload the pool there") from None
    except PermissionError:
        raise ConfigError(f"process {pid} belongs to another user: run this as that user") from None


def _ended(pool: Client, count: int, within_s: float) -> dict[str, Any]:
    """The status once one more reload has ended."""
    deadline_at = time.monotonic() + within_s
    while True:
        found: dict[str, Any] = json.loads(pool.status(timeout_s=10.0))
        if found["reload"]["count"] > count:
            return found
        if time.monotonic() > deadline_at:
            raise ModelError(f"the reload goes on, but did not end within {within_s:g} s: see `embedpool status`")
        time.sleep(LOOK_S)
