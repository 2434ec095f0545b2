"""The process that workers are forked from: it has loaded all that they have in common, so that they share it.

That is the interpreter with its libraries and the tokenizer: 0.3 s and 30 MB for a small model, 1.1 s and 130 MB with Gemma's
vocabulary of 262,144 words, once instead of once per worker. A session is never forked: each worker opens its own, and the
weights are shared through the artifact's pages. (The idea is that of Android's zygote and Python's multiprocessing.)

Rules
1. One thread, no socket of ZeroMQ, no session: nothing is held at a fork that a child could find half done.
2. A worker is forked twice, so that it is the supervisor's child (a subreaper, prctl(2)) and is reaped by it alone.
3. It ends when the supervisor closes its end of the control socket, or dies.
"""

from __future__ import annotations

import array
import contextlib
import gc
import os
import socket
import time
from collections.abc import Callable

import msgspec
from msgspec import Struct

from embedpool.lifeline import die_with_parent, name_process
from embedpool.memory import give_back

PACKET_BYTES = 65_536
READY = b"ready"
ADOPTED_WITHIN_S = 5.0


class Fork(Struct, frozen=True):
    """supervisor → forkserver: start this worker; the descriptor of its record comes with the packet."""

    worker: int
    index: int
    cores: tuple[int, ...]


class Forked(Struct, frozen=True):
    """forkserver → supervisor: the worker runs, and is your child; `pid` 0: it could not be forked."""

    worker: int
    pid: int


def run(control: socket.socket, become: Callable[[Fork, int], None]) -> None:
    """Forks whatever is asked for, until the supervisor is gone. `become(fork, record_fd)` is the worker's life."""
    supervisor = os.getppid()
    die_with_parent()
    name_process("embedpool-fork")
    gc.collect()
    gc.freeze()  # what is shared stays shared: the collector would write to every object it looks at
    give_back()
    control.setblocking(True)
    control.send(READY)
    while True:
        packet, fds = _receive(control)
        if not packet:
            return
        fork = msgspec.msgpack.decode(packet, type=Fork)
        try:
            pid = _fork_twice(control, fork, fds[0], supervisor, become)
        except OSError:  # no memory, or too many processes: it may be tried again
            pid = 0
        os.close(fds[0])
        control.send(msgspec.msgpack.encode(Forked(fork.worker, pid)))


def _receive(control: socket.socket) -> tuple[bytes, list[int]]:
    try:
        packet, ancillary, _, _ = control.recvmsg(PACKET_BYTES, socket.CMSG_SPACE(4))
    except ConnectionError:
        return b"", []
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return packet, list(fds)


def _fork_twice(
    control: socket.socket, fork: Fork, record_fd: int, supervisor: int, become: Callable[[Fork, int], None]
) -> int:
    """The worker's process id, once its nearest ancestor alive is the supervisor."""
    told, tell = os.pipe()
    between = os.fork()
    if between == 0:
        with _no_way_back():
            pid = os.fork()
            if pid:
                os.write(tell, pid.to_bytes(4, "little"))
                os._exit(0)
            control.close()
            os.close(told)
            os.close(tell)
            _be_adopted(supervisor)
            os.setpgid(0, 0)
            name_process(f"embedpool-w{fork.index}")
            become(fork, record_fd)
            os._exit(0)
    os.close(tell)
    try:
        os.waitpid(between, 0)
        return int.from_bytes(os.read(told, 4), "little")
    finally:
        os.close(told)


@contextlib.contextmanager
def _no_way_back():  # type: ignore[no-untyped-def]  # a generator of nothing
    """A forked process must never return into the forkserver's loop."""
    try:
        yield
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def _be_adopted(supervisor: int) -> None:
    """Waits for the process between to end; a worker without a supervisor ends too."""
    deadline_at = time.monotonic() + ADOPTED_WITHIN_S
    while os.getppid() != supervisor:
        if time.monotonic() > deadline_at:
            os._exit(1)
        time.sleep(0.0005)
