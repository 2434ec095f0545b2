"""A listener of libzmq that accepts one connection at a time, and none for which no descriptor is left.

libzmq accepts whatever comes, as fast as it can (42,000 connections a second, in a thread of its own). Out of descriptors,
its ipc listener aborts the process (errno_assert in ipc_listener.cpp: EMFILE is not among the errors it expects, 4.3.5), and
its tcp listener asks again at once, for ever. Unbinding near the limit is no remedy: it ends the connections that the
listener has accepted, and whoever counts connections in this thread is behind libzmq's.

So the kernel is told to report one connection and no more (EPOLLONESHOT, epoll_ctl(2)), and again for each one that is let
in. Who is not let in waits in the listener's queue, and in connect(2) beyond that; nobody who is connected notices.
libzmq has no call for it, but the set of its epoll is the kernel's, where proc(5) shows each entry with the pointer by which
libzmq knows it; nothing of libzmq's own memory is touched. Where that cannot be seen (another poller, no /proc), the listener
works as libzmq means it to, and the log says so.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import select
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import zmq

from embedpool.edge import has_message
from embedpool.router.descriptors import Descriptors

log = logging.getLogger("embedpool.router")

SETTLED = zmq.EVENT_ACCEPTED | zmq.EVENT_ACCEPT_FAILED  # each report of the kernel ends in one of these
PLUGGED_WITHIN_S = 1.0  # libzmq's thread adds the listener to its set a moment after bind has returned
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # accept(2): asking again at once would find the same
EPOLL_CTL_MOD = 3
ENTRY = re.compile(r"^tfd: *(\d+) events: *([0-9a-f]+) data: *([0-9a-f]+)", re.MULTILINE)  # proc(5), fdinfo of an epoll


class _Event(ctypes.Structure):
    """struct epoll_event, which is packed on x86 alone (sys/epoll.h)."""

    _pack_ = 1 if os.uname().machine in ("x86_64", "i686") else 8
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


# Once: every CDLL makes a class of its own, which only the garbage collector takes away again, and a door reports for each
# connection that comes.
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """A descriptor in the set of an epoll, with what its owner knows it by."""

    epoll: int
    fd: int
    data: int

    def report(self, events: int) -> None:
        """From now on, and nothing else."""
        event = _Event(events, self.data)
        if _libc.epoll_ctl(self.epoll, EPOLL_CTL_MOD, self.fd, ctypes.byref(event)):
            raise OSError(ctypes.get_errno(), "epoll_ctl")


class Door:
    """The listener of `sock`, once `listen` was called. `keep` descriptors are left to others."""

    def __init__(self, sock: zmq.Socket[bytes], descriptors: Descriptors, keep: int) -> None:
        self._sock = sock
        self._descriptors = descriptors
        self._keep = keep
        self._entry: Entry | None = None
        self._is_open = False

    def listen(self, endpoint: str) -> None:
        """Binds, and lets nobody in yet. Raises ZMQError as bind does."""
        self.monitor = self._sock.get_monitor_socket(zmq.EVENT_LISTENING | SETTLED)
        self._sock.bind(endpoint)
        kind, listener = self._event()
        assert kind == zmq.EVENT_LISTENING, "bind has said where it listens"
        self._entry = _entry(listener)
        if self._entry is None:
            log.warning("connections are not counted: the router may end when descriptors run out")
        else:
            self._entry.report(0)

    def open(self) -> None:
        """The next connection is let in, if a descriptor is left for it. To be called again after a while: nothing tells when
        one is free again."""
        if self._entry is not None and not self._is_open and self._descriptors.promise(self._keep):
            self._is_open = True
            self._entry.report(select.EPOLLIN | select.EPOLLONESHOT)

    def look(self) -> None:
        """Whoever has come in leaves the door to the next. Never waits."""
        while has_message(self.monitor):
            kind, value = self._event()
            if self._is_open:  # else it is one of the moment before the door was hung
                self._is_open = False
                self._descriptors.kept()
                if kind == zmq.EVENT_ACCEPTED or value not in SCARCE:
                    self.open()

    def _event(self) -> tuple[int, int]:
        """(kind, descriptor or error number) of one that has arrived, zmq_socket_monitor(3)."""
        kind, value = struct.unpack("=hi", self.monitor.recv_multipart(zmq.NOBLOCK)[0])
        return kind, value


def _entry(listener: int) -> Entry | None:
    """The listener in the set of libzmq's epoll."""
    deadline_at = time.monotonic() + PLUGGED_WITHIN_S
    while time.monotonic() < deadline_at:
        for info in Path("/proc/self/fdinfo").glob("*"):
            for fd, events, data in ENTRY.findall(_text(info)):
                if int(fd) == listener and int(events, 16) & select.EPOLLIN:
                    return Entry(int(info.name), listener, int(data, 16))
        time.sleep(0.001)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def open_descriptors() -> int:
    """Of this process, but for the one that lists them."""
    return len(os.listdir("/proc/self/fd")) - 1
