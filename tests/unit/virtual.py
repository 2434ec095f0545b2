"""Virtual time: a clock that jumps from one event to the next, and threads that wait for it.

`worker.turns` calls the model and waits for it, so each simulated worker has a thread of its own. Only one thread runs at a
time, and hands on by name whose turn it is: the same scenario always takes the same course, and nothing waits for real time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush

GIVEN_UP_S = 30.0  # of real time: a thread that does not hand on is a fault of the tests


class Ended(BaseException):
    """Raised in a worker's thread where it waits, when the worker is killed."""


class Thread:
    """`body` runs in it from the first `resume` on; `resume` returns when it pauses, `pause` when it is resumed."""

    def __init__(self, body: Callable[[], None]) -> None:
        self._body = body
        self._its_turn, self._our_turn = threading.Semaphore(0), threading.Semaphore(0)
        self._ending = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        self._its_turn.release()
        assert self._our_turn.acquire(timeout=GIVEN_UP_S)
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        self._our_turn.release()
        self._wait()

    def end(self) -> None:
        self._ending = True
        self._its_turn.release()
        self._thread.join(GIVEN_UP_S)

    def _wait(self) -> None:
        assert self._its_turn.acquire(timeout=GIVEN_UP_S)
        if self._ending:
            raise Ended

    def _run(self) -> None:
        try:
            self._wait()
            self._body()
        except Ended:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._our_turn.release()


@dataclass
class Clock:
    """Seconds since the start. Stands in for the module `time` in worker.turns."""

    now: float = 0.0
    _due: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    _count: int = 0

    def perf_counter(self) -> float:
        return self.now

    def at(self, when: float, call: Callable[[], object]) -> None:
        self._count += 1
        heappush(self._due, (max(when, self.now), self._count, call))

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            self.now, _, call = heappop(self._due)
            call()
        self.now = until
