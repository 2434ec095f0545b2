"""Which worker a job goes to, known without asking every one of them: with 64 workers, asking was a third of the router's time.
Pure; owned by the core, which says of every worker whose jobs or fate have changed that they have.

Two heaps, of those with room for an urgent job and for one that is not. A change enters the worker anew, and what was entered
before is void: it is thrown away when it comes to the top, or when most of a heap is void. A call costs O(log workers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count

from embedpool.router.state import Worker

DEPTH = 2  # of each class: one job running, one ahead, so that a worker never waits for the router's round trip (150 us)
MOST_VOID = 64  # entries, beyond one for each worker: clearing them away less often costs nothing

Entry = tuple[int, int, int, int, int]  # units before such a job, units in all, the last job's number; worker, and its change


@dataclass(slots=True)
class Roster:
    """`workers` are the core's own, by their numbers. `changes` are the numbers of each one's last change."""

    workers: dict[int, Worker]
    _changes: dict[int, int] = field(default_factory=dict)
    _urgent: list[Entry] = field(default_factory=list)
    _others: list[Entry] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def changed(self, number: int) -> None:
        """It has come or gone, was given a job or has ended one, is killed or retires."""
        worker = self.workers.get(number)
        if worker is None or worker.killed or worker.retiring:
            self._changes.pop(number, None)
            return
        self._changes[number] = change = next(self._numbers)
        urgent = of_queries = every = 0
        for job in worker.jobs:
            every += job.units
            if job.urgent:
                of_queries += job.units
                urgent += 1
        if urgent < DEPTH:
            self._enter(self._urgent, (of_queries, every, worker.given, number, change))
        if len(worker.jobs) - urgent < DEPTH:
            self._enter(self._others, (every, every, worker.given, number, change))

    def _enter(self, heap: list[Entry], entry: Entry) -> None:
        heappush(heap, entry)
        if len(heap) > 2 * len(self.workers) + MOST_VOID:
            heap[:] = [one for one in heap if self._changes.get(one[3]) == one[4]]
            heapify(heap)

    def least_busy(self, urgent: bool) -> int:
        """The worker with room for such a job that has the least to do before it, then at all, and then that which was given
        one the longest time ago: what it runs gives way to queries only so often. 0 for none."""
        heap = self._urgent if urgent else self._others
        while heap:
            number = heap[0][3]
            if self._changes.get(number) == heap[0][4]:
                return number
            heappop(heap)
        return 0

    @staticmethod
    def has_room(worker: Worker, urgent: bool) -> bool:
        """Whether a worker that takes jobs takes one of this class now."""
        return sum([job.urgent == urgent for job in worker.jobs]) < DEPTH
