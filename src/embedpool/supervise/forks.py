"""The supervisor's end of the forkserver: asks for a worker, gets a child of its own."""

from __future__ import annotations

import array
import contextlib
import os
import socket

import msgspec

from embedpool.supervise.processes import Child
from embedpool.worker.forkserver import PACKET_BYTES, READY, Fork, Forked

ANSWER_WITHIN_S = 5.0  # a fork takes milliseconds; a forkserver that takes longer is stopped or gone


class ForkFailed(Exception):
    """The forkserver did not answer: it is to be replaced."""


class Forks:
    """`control` is our end of the socket pair, which the forkserver inherited the other end of."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fileno(self) -> int:
        return self._control.fileno()

    def is_ready(self) -> bool:
        """Whether what has arrived says so; call when readable. False also when the other end is gone."""
        with contextlib.suppress(OSError):
            return self._control.recv(PACKET_BYTES, socket.MSG_DONTWAIT) == READY
        return False

    def fork(self, name: str, fork: Fork, record_fd: int) -> Child:
        """A running worker. Raises ForkFailed."""
        fds = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [record_fd]))
        self._control.settimeout(ANSWER_WITHIN_S)
        try:
            self._control.sendmsg([msgspec.msgpack.encode(fork)], [fds])
            answer = self._control.recv(PACKET_BYTES)
        except OSError as error:
            raise ForkFailed(f"no answer: {error}") from error
        if not answer:
            raise ForkFailed("it ended")
        pid = msgspec.msgpack.decode(answer, type=Forked).pid
        if not pid:
            raise ForkFailed("it could not fork: no memory, or too many processes")
        return Child(name, pid, os.pidfd_open(pid))

    def close(self) -> None:
        self._control.close()
