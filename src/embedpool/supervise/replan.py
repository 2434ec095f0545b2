"""A machine that changes under a running pool: cores go offline and come back (nvpmodel, hotplug), a quota is changed.

    looked every LOOK_S → other bounds → the same ones at the next look → machine read → planned → workers follow, one by one

Rules
1. Nothing happens while it changes: a power mode takes cores away one after the other, and each would be a plan of its own.
2. A worker whose core is gone goes on where the kernel puts it, slower, until another one is ready on the core of the new plan.
   Those that are too many do what they have in hand and end. So no request fails, and the pool is never without a worker.
3. A worker whose cores are the same in the new plan is left alone, if it is still pinned to them, or to some of them (a library
   may pin a thread more narrowly while it runs). Where a core went and came back, or a cpuset changed, the kernel has widened
   the mask for good (sched_setaffinity(2), cpuset(7)): another takes over.
4. A reload goes first: it plans for itself.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from embedpool import control
from embedpool.config import Config
from embedpool.supervise import gpus
from embedpool.supervise.cores import CorePlan, in_place, plan
from embedpool.supervise.machine import read_bounds, read_machine
from embedpool.supervise.slots import Slot
from embedpool.supervise.specs import router_spec
from embedpool.supervise.topology import Bounds

if TYPE_CHECKING:
    from embedpool.supervise.supervisor import Supervisor

log = logging.getLogger("embedpool.supervisor")

LOOK_S = 2.0  # a look reads some ten small files: 0.3 ms of a core here
AGAIN_S = 60.0  # after a worker could not be started on its new cores


def planned(config: Config, root: Path = Path("/")) -> CorePlan:
    """The plan for this machine as it is now."""
    return plan(read_machine(root), config.workers or gpus.of(config), config.threads_per_worker, config.pin)


class Replan:
    """Of one supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._seen: Bounds | None = None
        self._look_at = 0.0
        self._pinned: set[int] = set()  # workers that were found on their cores; one that cannot be pinned is never among them
        self._lost: set[int] = set()  # those of them that are pinned no more
        self._moved: Slot | None = None  # the last one that another was started for
        self._again_at = 0.0

    def go_on(self, now: float) -> None:
        """Called after everything that happens."""
        supervisor = self._supervisor
        if supervisor.reload.news.state == "running" or supervisor.stop_at is not None:
            return
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look()
        self._follow(now)

    def _look(self) -> None:
        serving, found = self._supervisor.serving, read_bounds(self._supervisor.machine_root)
        settled, self._seen = found == self._seen, found
        if not settled:
            return
        if found != serving.plan.bounds:
            serving.plan = in_place(planned(serving.config, self._supervisor.machine_root), serving.plan.workers)
            log.warning("the machine has changed, planning again: %s", serving.plan.reason)
            self._supervisor.say(control.Switch(router_spec(serving, self._supervisor.place).to_json(), relearn=False))
        self._look_at_pins()

    def _look_at_pins(self) -> None:
        slots = [slot for slot in self._supervisor.workers if slot.ready and slot.cores]
        holds = {slot.worker: _affinity(slot) <= frozenset(slot.cores) for slot in slots}
        self._pinned = {worker for worker, held in holds.items() if held or worker in self._pinned}
        self._lost = {worker for worker in self._pinned if not holds[worker]}

    def _follow(self, now: float) -> None:
        """Ends workers that are too many, starts those that are missing, and moves those that are elsewhere, one at a time."""
        supervisor, serving = self._supervisor, self._supervisor.serving
        count = len(serving.plan.workers)
        for slot in supervisor.workers[:]:
            if slot.index >= count and not slot.leaving:
                supervisor.retire(slot)
            elif slot.index < count and slot.child is None:
                slot.cores = serving.cores(slot.index)
        there = {slot.index for slot in supervisor.workers}
        supervisor.workers += [serving.worker(index) for index in range(count) if index not in there]
        elsewhere = next((slot for slot in supervisor.workers if slot.index < count and self._is_elsewhere(slot)), None)
        quiet = all(slot.ready and not slot.leaving and slot.relieves is None for slot in supervisor.workers if slot.child)
        if elsewhere is None or not quiet or (elsewhere is self._moved and now < self._again_at):
            return
        self._moved, self._again_at = elsewhere, now + AGAIN_S
        where = serving.cores(elsewhere.index)
        log.info("%s is not on its cores %s: another takes its place", elsewhere.name, where, extra={"event": "moved"})
        supervisor.relieve(elsewhere)

    def _is_elsewhere(self, slot: Slot) -> bool:
        return slot.cores != self._supervisor.serving.cores(slot.index) or slot.worker in self._lost


def _affinity(slot: Slot) -> frozenset[int]:
    """Where the kernel runs the worker; its cores where it is gone, which is another's business."""
    try:
        return frozenset(os.sched_getaffinity(slot.child.pid)) if slot.child is not None else frozenset(slot.cores)
    except ProcessLookupError:
        return frozenset(slot.cores)
