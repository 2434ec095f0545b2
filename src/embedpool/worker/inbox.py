"""What the router sends to a worker, in order; and noticing an urgent job while the model computes.

A run of the model can take milliseconds to seconds, and a query must not wait for it. While the main thread is inside the
runtime, which releases the GIL, a second thread waits at the socket and interrupts the run when an urgent job has come.

Rules
1. The socket is used by one thread at a time: by the second one only between `begin` and `end` of a watch, under the lock.
2. Only urgent jobs overtake. All other messages stay in the order in which they came.
"""

from __future__ import annotations

import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import zmq

from embedpool import protocol as wire
from embedpool.edge import descriptor, has_message, stay_awake

# What an interrupted run has done is done again. So a run goes on to its end if less of it is left than is done, unless a query
# would wait longer than PATIENCE_S for it; if even that is little beside what is done, unless it would wait for a whole slice;
# and if next to nothing is left.
SLICE_S, PATIENCE_S, NEARLY_S = 0.020, 0.010, 0.002
LITTLE = 0.2


def worth_interrupting(done_s: float, left_s: float) -> bool:
    """Whether a query should end a run of which so much is done and, as expected, so much is left."""
    return left_s > SLICE_S or left_s > max(PATIENCE_S, LITTLE * done_s) or left_s > max(done_s, NEARLY_S)


class Inbox:
    """`interrupt` is called in the second thread, and makes the run of the main one raise. `cores` are those on which the
    second thread may run: not only the worker's own, which the run keeps busy."""

    def __init__(self, sock: zmq.Socket[bytes], interrupt: Callable[[], None], cores: frozenset[int]) -> None:
        self._sock = sock
        self._interrupt = interrupt
        self._cores = cores
        self._messages: deque[wire.Message] = deque()
        self._lock = threading.Lock()
        self._watching = False
        self._began_at, self._ends_at = 0.0, math.inf
        self._go, self._stop = (os.eventfd(0, os.EFD_CLOEXEC | flag) for flag in (0, os.EFD_NONBLOCK))
        self._poll = select.poll()
        for fd in (descriptor(sock), self._stop):
            self._poll.register(fd, select.POLLIN)
        self._thread: threading.Thread | None = None

    def next(self, awake_until: float) -> wire.Message:
        """The oldest message; waits for one, awake until then."""
        if self._messages:
            return self._messages.popleft()
        stay_awake(self._sock, awake_until)
        return wire.decode(self._sock.recv())

    def urgent(self) -> wire.Job | None:
        """The oldest urgent job that has arrived, if there is one."""
        self._drain()
        for message in self._messages:
            if isinstance(message, wire.Job) and message.urgent:
                self._messages.remove(message)
                return message
        return None

    @contextmanager
    def watching(self, expected_s: float) -> Iterator[None]:
        """What is run inside is interrupted when an urgent job arrives, unless it is near its expected end."""
        self._begin(expected_s)
        try:
            yield
        finally:
            self._end()

    def _begin(self, expected_s: float) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="inbox", daemon=True)
            self._thread.start()
        self._began_at = time.perf_counter()
        self._ends_at = self._began_at + expected_s
        with self._lock:
            self._watching = True
        os.eventfd_write(self._go, 1)

    def _end(self) -> None:
        with self._lock:
            self._watching = False
        os.eventfd_write(self._stop, 1)

    def _drain(self) -> bool:
        """Takes in what has arrived; whether an urgent job is among it."""
        found = False
        while has_message(self._sock):
            message = wire.decode(self._sock.recv())
            self._messages.append(message)
            found = found or (isinstance(message, wire.Job) and message.urgent)
        return found

    # ── the second thread ──

    def _watch(self) -> None:
        with suppress(OSError):  # they are offline by now, or it is forbidden: then it shares the worker's cores
            os.sched_setaffinity(threading.get_native_id(), self._cores)
        while True:
            os.eventfd_read(self._go)
            while self._has_to_watch():
                pass

    def _has_to_watch(self) -> bool:
        """Waits for a message or the end of the watch; False when it has ended."""
        ready = self._poll.poll()
        with self._lock:
            if (self._stop, select.POLLIN) in ready:
                os.eventfd_read(self._stop)
            if not self._watching:
                return False
            now = time.perf_counter()
            if self._drain() and worth_interrupting(now - self._began_at, self._ends_at - now):
                self._interrupt()
        return True
