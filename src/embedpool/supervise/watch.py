"""What the supervisor sees of its children from outside: that one is late, stopped, silent, or too large."""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path

from embedpool.supervise.slots import Slot

ROUTER_START_S = 10.0
ROUTER_SILENT_S = 5.0  # at least: it says Alive twice a second, and on a loaded machine now and then later
LOOK_S = 0.5
REPLACE_EVERY_S = 60.0  # a limit below what a worker needs from its start must not make the pool do nothing but start workers


def start_overdue(slot: Slot, start_timeout_s: float, hang_s: float, now: float) -> str:
    """Why a worker or forkserver that is not ready should be ready or give its place to another; "" for no reason."""
    if slot.child is None or slot.ready:
        return ""
    if now - slot.child.started_at >= start_timeout_s:
        return f"not ready within {start_timeout_s:.0f} s"
    if not is_stopped(slot.child.pid):
        slot.stopped_at = None
    elif slot.stopped_at is None:
        slot.stopped_at = now
    elif now - slot.stopped_at >= hang_s:
        return f"stopped for {hang_s:g} s while it started"
    return ""


def router_overdue(slot: Slot, link: socket.socket | None, hang_s: float, now: float) -> str:
    """Why a router should give its place to another; "" for no reason."""
    if slot.child is None:
        return ""
    if not slot.ready:
        return f"not ready within {ROUTER_START_S:.0f} s" if now - slot.child.started_at >= ROUTER_START_S else ""
    silent_s = now - slot.heard_at
    if silent_s < max(hang_s, ROUTER_SILENT_S):
        return ""
    if link is not None and select.select([link], [], [], 0.0)[0]:
        return ""  # it has spoken: we were the ones who did not listen
    return f"silent for {silent_s:.0f} s"


def needs_looking_at(slot: Slot, max_worker_rss_mb: float) -> bool:
    """Whether nothing tells of what may become of this child: it has to be looked at from time to time."""
    if slot.child is None:
        return False
    return not slot.ready or not slot.is_worker or max_worker_rss_mb > 0


def is_too_large(slot: Slot, max_worker_rss_mb: float, now: float) -> bool:
    """Whether a worker that serves has more memory than it may, and was not replaced just now."""
    if max_worker_rss_mb <= 0 or slot.child is None or not slot.ready or slot.leaving:
        return False
    return now - slot.replaced_at >= REPLACE_EVERY_S and rss_mb(slot.child.pid) > max_worker_rss_mb


def rss_mb(pid: int) -> float:
    """Resident memory, shared pages included, as `ps` and `top` show it; 0 for a process that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def is_stopped(pid: int) -> bool:
    """Whether it was stopped by a signal (proc_pid_stat(5): T; t is a debugger's)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


_had_terminal = sys.stdin is not None and sys.stdin.isatty()


def terminal_is_gone() -> bool:
    """Whether this process was started in a terminal that is closed: SIGHUP then means its end, and not a reload."""
    if not _had_terminal:
        return False
    try:
        os.tcgetpgrp(0)
    except OSError:
        return True
    return False
