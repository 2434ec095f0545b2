"""What the supervisor sees of its children from outside: that one is late, stopped, silent, or too large."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedpool.supervise.notices import Phase, Sight
from embedpool.supervise.slots import Slot

if TYPE_CHECKING:
    from embedpool.supervise.supervisor import Supervisor

ROUTER_START_S = 10.0
ROUTER_SILENT_S = 5.0  # at least: it says Alive twice a second, and on a loaded machine now and then later
ROUTER_LATE_S = 3.0  # six signs of life have not come: not yet a reason to replace it, but none to call it well
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


def makes_progress(router: Slot, workers: Sequence[Slot], now: float) -> bool:
    """Whether the router has spoken lately, and some worker works, starts, or is about to: none that is stopped, or that was
    killed and does not go."""
    if router.child is None or not router.ready or now - router.heard_at >= ROUTER_LATE_S:
        return False
    return any(_works(slot) for slot in workers)


def _works(slot: Slot) -> bool:
    if slot.child is None:
        return slot.due_at is not None
    return not slot.killed_for and not is_stopped(slot.child.pid)


def sight(supervisor: Supervisor, now: float) -> Sight:
    """What a service manager is told of."""
    config, serving = supervisor.config, supervisor.serving
    places = range(len(serving.plan.workers))
    ready = {slot.index for slot in supervisor.workers if slot.ready}
    reloaded = supervisor.reload.news
    return Sight(
        phase=_phase(supervisor),
        model=serving.spec.name,
        endpoint=config.endpoint_url(),
        workers=len(places),
        ready=len(ready),
        restarts=sum(slot.restarts.total for slot in (supervisor.router, *supervisor.workers)),
        missing=_missing([slot for slot in supervisor.workers if slot.index not in ready]),
        failed=supervisor.failed,
        not_reloaded=reloaded.reason if reloaded.state == "failed" else "",
        progress=not supervisor.failed and makes_progress(supervisor.router, supervisor.workers, now),
        stops_within_s=config.drain_s if _phase(supervisor) == "stopping" else 0.0,
    )


def _phase(supervisor: Supervisor) -> Phase:
    if supervisor.is_stopping:
        return "stopping"
    if not supervisor.was_ready:
        return "starting"
    return "reloading" if supervisor.reload.news.state == "running" else "serving"


def _missing(absent: Sequence[Slot]) -> str:
    """Of places that nobody fills: how the last one there ended, so far as one has."""
    return ", ".join(f"{slot.name} ended ({slot.ended})" for slot in absent if slot.ended)


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
