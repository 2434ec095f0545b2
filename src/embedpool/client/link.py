"""The client's socket: made, sent to, emptied. Shared by both clients; no waiting here."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import zmq

from embedpool.edge import NOBLOCK, RCVMORE, has_message
from embedpool.errors import ConfigError, Unavailable

RECONNECT_MS, RECONNECT_MOST_MS = 20, 500
BYE_MS = 100  # how long a closing socket may take to hand over its last message
OF_LINK = 6  # descriptors: the socket's, its connection's, a client's to be woken by, three while a segment is mapped
OF_CONTEXT = 5

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One context, and so one I/O thread, per process. A forked child gets its own: the parent's thread is not in it."""
    pid = os.getpid()
    if pid not in _contexts:
        _contexts[pid] = zmq.Context()  # the parent's stays referenced: it must not be destroyed here
    return _contexts[pid]


def open_link(endpoint: str) -> zmq.Socket[bytes]:
    """A DEALER that connects, and connects again, to the endpoint. Its routing id is drawn at random: whoever would know it
    could take over the session's answers once we are gone. Raises ConfigError for what is no endpoint, Unavailable where this
    process has no file descriptors left."""
    _check_descriptors()
    try:
        sock = _context().socket(zmq.DEALER)
    except zmq.ZMQError as error:
        raise no_descriptor(error) from error
    sock.setsockopt(zmq.ROUTING_ID, b"c" + os.urandom(12))
    # An empty message at every connection, the first and later ones: a router that does not know us asks who. Without
    # IMMEDIATE a lost connection is made again behind our back, with what was queued for the old router and no probe.
    sock.setsockopt(zmq.PROBE_ROUTER, 1)
    sock.setsockopt(zmq.IMMEDIATE, 1)
    sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    sock.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MOST_MS)
    sock.setsockopt(zmq.SNDHWM, 0)
    sock.setsockopt(zmq.RCVHWM, 0)
    sock.setsockopt(zmq.LINGER, BYE_MS)
    try:
        sock.connect(endpoint)
    except zmq.ZMQError as error:
        sock.close()
        raise ConfigError(f"endpoint {endpoint!r} cannot be used: {error.strerror}") from error
    return sock


def _check_descriptors() -> None:
    """Raises Unavailable. Asked before libzmq is: a context that finds none for its epoll aborts the process (epoll.cpp), and
    a connection that finds none is tried again and again without a word."""
    held: list[int] = []
    try:
        for _ in range(OF_LINK + (0 if os.getpid() in _contexts else OF_CONTEXT)):
            held.append(os.eventfd(0, os.EFD_CLOEXEC))
    except OSError as error:
        raise no_descriptor(error) from error
    finally:
        for fd in held:
            os.close(fd)


def no_descriptor(error: OSError | zmq.ZMQError) -> Unavailable:
    """What a client raises that cannot open a file or socket."""
    return Unavailable(
        f"no connection to the pool can be opened in this process: {error.strerror}. Close what is not needed, or raise its"
        " limit (ulimit -n)"
    )


def send(sock: zmq.Socket[bytes], frames: Iterable[bytes]) -> None:
    """Sends while there is a connection. What cannot be sent is dropped: the next router asks who, and is told all again."""
    with contextlib.suppress(zmq.Again):
        for frame in frames:
            sock.send(frame, NOBLOCK)


def receive(sock: zmq.Socket[bytes]) -> tuple[bytes, bytes] | None:
    """(frame, payload) of one message that has arrived, or None."""
    if not has_message(sock):
        return None
    frame = sock.recv(NOBLOCK)
    payload = b""
    while sock.get(RCVMORE):
        payload = sock.recv()
    return frame, payload


def nobody_at(endpoint: str) -> str:
    """What to say of an endpoint where nobody answers."""
    path = endpoint.removeprefix("ipc://")
    if endpoint.startswith("ipc://") and _is_closed(Path(path).parent):
        return f"no permission to look into {Path(path).parent}: ask for membership in the group that owns it"
    if endpoint.startswith("ipc://") and not Path(path).exists():
        return f"no pool is running: there is no socket {path}. Start one with `embedpool serve`, or set EMBEDPOOL_ENDPOINT"
    if endpoint.startswith("ipc://") and not os.access(path, os.W_OK):
        return f"no permission to use {path}: ask for membership in the group that owns it"
    return f"no pool answers at {endpoint}: start one with `embedpool serve`, or set EMBEDPOOL_ENDPOINT"


def _is_closed(directory: Path) -> bool:
    """Whether this user may not pass through it, or not even see that it is there."""
    try:
        return directory.exists() and not os.access(directory, os.X_OK)
    except PermissionError:
        return True


def own_name() -> str:
    """How this client is called in the pool's status."""
    program = os.path.basename(sys.argv[0] if sys.argv and sys.argv[0] else "python")
    return f"{program} {os.getpid()}@{socket.gethostname()}"[:200]
