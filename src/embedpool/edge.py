"""Waiting at a ZeroMQ socket: its edge-triggered descriptor, and staying awake for what comes at once. Shared by all loops."""

from __future__ import annotations

import os
import time

import zmq

# Falling asleep and being woken costs a virtual machine 50-100 us, and what runs next runs with cold caches. Where a job is
# shorter than this (the echo model, static embeddings), router and worker stay awake for this long after it; where a model
# computes for milliseconds, they never do.
SOON_S = 250e-6


# pyzmq's constants are members of enumerations: to combine two of them takes 1 us, to receive a frame 0.2 us. So plain numbers
# where a message passes.
NOBLOCK, SNDMORE_NOBLOCK = int(zmq.NOBLOCK), int(zmq.SNDMORE | zmq.NOBLOCK)
RCVMORE, EVENTS, POLLIN = int(zmq.RCVMORE), int(zmq.EVENTS), int(zmq.POLLIN)


def descriptor(sock: zmq.Socket[bytes]) -> int:
    """Readable when something may have arrived. Edge-triggered (ZMQ_FD): after every use, empty the socket."""
    fd = sock.getsockopt(zmq.FD)
    assert isinstance(fd, int)
    return fd


def has_message(sock: zmq.Socket[bytes]) -> bool:
    """Whether a message has arrived. Asking costs 1 us, catching zmq.Again 4."""
    return sock.get(EVENTS) & POLLIN != 0  # type: ignore[operator]  # an option of pyzmq's is a number or bytes: this one a number


def stay_awake(sock: zmq.Socket[bytes], until: float) -> None:
    """Returns when a message has arrived or `until` (time.perf_counter) has passed; others may have the core meanwhile."""
    while time.perf_counter() < until and not has_message(sock):
        os.sched_yield()
