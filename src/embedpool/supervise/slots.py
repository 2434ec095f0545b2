"""The places of a pool and what fills them: records of the supervisor, without any decision."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from embedpool.config import Config
from embedpool.models.spec import ModelSpec
from embedpool.supervise.cores import CorePlan
from embedpool.supervise.forks import Forks
from embedpool.supervise.policy import Restarts
from embedpool.supervise.processes import Child


@dataclass(slots=True, eq=False)
class Slot:
    """One place in the pool: the child that fills it, or when the next one is due.

    A worker that is to be replaced goes on until another one is ready in a slot of the same index, which `relieves` it; then it
    is `leaving`: it does what it has in hand, and ends.
    """

    name: str
    generation: Generation | None = None  # of a worker or forkserver: what it computes with
    index: int = -1  # of a worker
    cores: tuple[int, ...] = ()
    child: Child | None = None
    worker: int = 0  # the child's number, never used twice
    ready: bool = False
    due_at: float | None = 0.0
    restarts: Restarts = field(default_factory=Restarts)
    killed_for: str = ""
    ended: str = ""  # how the last child ended
    relieves: Slot | None = None
    leaving: bool = False
    heard_at: float = 0.0  # of the router: when it last said anything
    stopped_at: float | None = None  # since when it was found stopped (SIGSTOP) while it starts
    replaced_at: float = -1e9  # when it was last replaced for its memory
    record_fd: int = -1  # where the worker writes which job it begins

    @property
    def is_worker(self) -> bool:
        return self.index >= 0

    def take_record(self) -> int:
        """The last job that the worker, which is reaped, had begun; 0 for none. A SIGKILL does not take this from us."""
        if self.record_fd < 0:
            return 0
        begun = int.from_bytes(os.pread(self.record_fd, 8, 0), "little")
        os.close(self.record_fd)
        self.record_fd = -1
        return begun


@dataclass(slots=True, eq=False)
class Generation:
    """One configuration with its model, and the forkserver that its workers come from."""

    config: Config
    spec: ModelSpec
    plan: CorePlan
    forkserver: Slot = field(default_factory=lambda: Slot("forkserver"))
    forks: Forks | None = None

    def __post_init__(self) -> None:
        self.forkserver.generation = self

    def worker(self, index: int, relieves: Slot | None = None) -> Slot:
        """A place for one of its workers."""
        return Slot(f"worker {index}", self, index, self.cores(index), relieves=relieves)

    def cores(self, index: int) -> tuple[int, ...]:
        """What the worker in this place is pinned to; () for nothing."""
        return self.plan.workers[index] if self.plan.pinned else ()
