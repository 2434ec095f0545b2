"""ZeroMQ's edge-triggered descriptor, for loops that wait on other descriptors too. Shared by router and clients."""

from __future__ import annotations

import zmq


def descriptor(sock: zmq.Socket[bytes]) -> int:
    """Readable when something may have arrived. Edge-triggered (ZMQ_FD): after every use, empty the socket."""
    fd = sock.getsockopt(zmq.FD)
    assert isinstance(fd, int)
    return fd


def has_message(sock: zmq.Socket[bytes]) -> bool:
    """Whether a message has arrived. Asking costs a fifth of what catching zmq.Again does."""
    return bool(int(sock.get(zmq.EVENTS)) & zmq.POLLIN)
