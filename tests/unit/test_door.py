"""What a door of the router does for each connection, apart from libzmq."""

from __future__ import annotations

import ctypes
import gc
import os
import select

from embedpool.router.door import Entry


def test_reporting_leaves_nothing_to_be_collected() -> None:
    """It happens once per connection, and classes that were made each time stayed until they were collected."""
    with select.epoll() as epoll:
        watched = os.eventfd(0)
        epoll.register(watched, 0)
        entry = Entry(epoll.fileno(), watched, watched)
        entry.report(select.EPOLLIN)
        gc.collect()
        classes = len(ctypes.CDLL.__subclasses__()) + len(ctypes._CFuncPtr.__subclasses__())  # type: ignore[attr-defined]
        gc.disable()
        try:
            for _ in range(50):
                entry.report(select.EPOLLIN | select.EPOLLONESHOT)
            assert gc.collect() == 0
        finally:
            gc.enable()
        assert len(ctypes.CDLL.__subclasses__()) + len(ctypes._CFuncPtr.__subclasses__()) == classes  # type: ignore[attr-defined]
        os.eventfd_write(watched, 1)
        assert epoll.poll(1) == [(watched, select.EPOLLIN)]
        assert not epoll.poll(0), "once, until it is asked for again"
        os.close(watched)
