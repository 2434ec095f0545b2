"""What `status` answers: one JSON document, made from the server's state. Reads, never changes."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from msgspec import to_builtins

if TYPE_CHECKING:
    from embedpool.router.cost import CostModel
    from embedpool.router.server import Server
    from embedpool.router.state import Job

COST_TOKENS = (16, 64, 256, 1024, 4096)


def status(server: Server) -> dict[str, Any]:
    """Keys are part of the interface of `embedpool status --json`; see docs/protocol.md."""
    core, sessions, now = server.core, server.sessions, time.monotonic()
    oldest = next(iter(core.queue), None)
    return {
        "state": _state(server),
        "reason": core.failed,
        "uptime_s": round(now - server.started_at, 3),
        "pool": {**server.spec.pool, "endpoint": server.spec.endpoint},
        "router": {"pid": os.getpid()},
        "reload": {"count": server.reloaded.count, "state": server.reloaded.state, "reason": server.reloaded.reason},
        "model": to_builtins(server.spec.model),
        "workers": [_worker(server, number, now) for number in sorted(server.spawned, key=lambda n: server.spawned[n].index)],
        "queue": {
            "requests": core.queue.requests,
            "rows": core.queue.rows,
            "bytes": core.queue.nbytes,
            "oldest_ms": round(max(0.0, now - oldest.arrived_at) * 1e3, 3) if oldest else 0.0,
            "estimated_ms": round(core.cost.ms(sum(core.queue.units.values())), 3),
        },
        "sessions": {
            "open": len(sessions.seats),
            "requests_open": sum(len(s.open) for s in core.sessions.values()),
            "segments": sum(seat.segment is not None for seat in sessions.seats.values()),
            "segment_bytes": sessions.used_bytes,
        },
        "cost": _cost(core.cost),
        "counters": asdict(core.counters),
        "classes": {"interactive": core.tally.interactive.facts(), "bulk": core.tally.bulk.facts()},
        "runs": core.tally.runs.facts(),
        "traces": server.outlet.facts() if server.outlet is not None else None,
    }


def _state(server: Server) -> str:
    if server.core.failed:
        return "failed"
    if server.core.draining:
        return "draining"
    return "serving" if server.core.workers else "starting"


def _cost(cost: CostModel) -> dict[str, Any]:
    """What a text of so many tokens is believed to take a worker, in milliseconds."""
    lengths = [n for n in COST_TOKENS if n <= cost.max_tokens]
    return {
        "unit_ms": cost.unit_ms,
        "error": round(cost.error, 4),
        "chars_per_token": round(cost.chars_per_token, 2),
        "row_ms": {str(n): round(cost.row_ms(n), 3) for n in lengths},
    }


def _worker(server: Server, number: int, now: float) -> dict[str, Any]:
    spawned = server.spawned[number]
    worker = server.core.workers.get(number)
    if worker is None:
        state = "waiting" if number in server.waiting else "starting"
    else:
        state = "hung" if worker.killed else "retiring" if worker.retiring else "busy" if worker.jobs else "idle"
    return {
        "index": spawned.index,
        "pid": spawned.pid,
        "cores": list(spawned.cores),
        "state": state,
        "restarts": spawned.restarts,
        "jobs_done": worker.jobs_done if worker else 0,
        "rows_done": worker.rows_done if worker else 0,
        "busy_s": round(worker.busy_until(now), 3) if worker else 0.0,
        "running": _running(worker.jobs[0], now) if worker and worker.jobs else None,
    }


def _running(job: Job, now: float) -> dict[str, Any]:
    return {"rows": job.rows(), "ms": round(max(0.0, now - job.began_at) * 1e3, 3), "interactive": job.urgent}
