"""Whether a pool makes progress decides whether systemd ends it: neither a hang may be overlooked nor a busy moment taken for
one."""

from __future__ import annotations

import os

import pytest

from embedpool.supervise.processes import Child
from embedpool.supervise.slots import Slot
from embedpool.supervise.watch import ROUTER_LATE_S, makes_progress

NOW = 1000.0


def _child() -> Child:
    return Child("this process, which runs", os.getpid(), -1)


def _router(silent_s: float = 0.5) -> Slot:
    return Slot("router", child=_child(), ready=True, due_at=None, heard_at=NOW - silent_s)


def _worker(killed_for: str = "", ready: bool = True) -> Slot:
    return Slot("worker 0", index=0, child=_child(), ready=ready, due_at=None, killed_for=killed_for)


WAITS = Slot("worker 1", index=1, due_at=NOW + 5)
GIVEN_UP = Slot("worker 2", index=2, due_at=None)


@pytest.mark.parametrize(
    ("router", "workers", "progress"),
    [
        (_router(), [_worker()], True),
        (_router(), [_worker(ready=False)], True),  # it starts, for which it has a time of its own
        (_router(), [GIVEN_UP, WAITS], True),
        (_router(), [_worker(killed_for="hung"), _worker()], True),
        (_router(), [_worker(killed_for="hung")], False),  # killed, and does not go: a driver holds it
        (_router(), [GIVEN_UP], False),
        (_router(), [], False),
        (_router(silent_s=ROUTER_LATE_S - 0.1), [_worker()], True),
        (_router(silent_s=ROUTER_LATE_S), [_worker()], False),
        (Slot("router", child=_child(), heard_at=NOW), [_worker()], False),
        (Slot("router"), [_worker()], False),
    ],
)
def test_progress_needs_a_router_that_speaks_and_a_worker_that_works_or_will(
    router: Slot, workers: list[Slot], progress: bool
) -> None:
    assert makes_progress(router, workers, NOW) is progress
