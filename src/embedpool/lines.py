"""Lines in, one reply each out, in the same order: the pipes of a child process that is asked by its parent. What a line means
is its caller's business.

A thread reads while the main one writes: with pipes of 64 KiB on both sides, and a peer that writes all before it reads,
anything else stands still.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import BinaryIO

LINE_BYTES = 64 << 20  # one request; AkiDB sends at most 32 texts at a time
PIPE_BYTES = 1 << 20  # of replies: the most that a process without privileges may ask for (pipe(7), pipe-max-size)
PENDING_BYTES = 256 << 20  # of lines read and not yet answered; beyond it the peer has to wait


def serve(submit: Callable[[bytes], Future[bytes]], source: BinaryIO, replies_fd: int) -> bool:
    """Answers every line of `source` on `replies_fd` with what `submit` gives for it, in order.

    True when the source has ended and all is answered, False when nobody reads the replies. `submit` is called from one thread
    and must not wait: what it cannot know yet is a future.
    """
    # A reply of 32 vectors is 280 KB: into a pipe of 64 KiB it goes in steps, each of which waits for the reader to be woken.
    with suppress(OSError):  # no pipe; or the user's pipes hold all they may
        fcntl.fcntl(replies_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    pending = Pending()

    def read() -> None:
        try:
            with suppress(RuntimeError):  # of an executor that was shut down: nobody reads replies any more
                for line in read_lines(source):
                    pending.put(Owed(submit(line), len(line)))
        finally:
            pending.put(Owed(None))

    threading.Thread(target=read, name="stdin", daemon=True).start()
    try:
        for line in pending.replies():
            _write(replies_fd, line)
    except BrokenPipeError:
        return False
    return True


def read_lines(source: BinaryIO, most_bytes: int = LINE_BYTES) -> Iterator[bytes]:
    """Lines that are not blank. One that is too long loses its end: cut, it is no JSON, and gets its one reply."""
    while line := source.readline(most_bytes):
        rest = line
        while not rest.endswith(b"\n") and (rest := source.readline(most_bytes)):
            pass
        if line.strip():
            yield line


@dataclass(slots=True)
class Owed:
    """A reply to come, and the bytes of its request. `reply` None: the source has ended."""

    reply: Future[bytes] | None
    size: int = 0


class Pending:
    """Replies in the order of their requests, from the reading thread to the writing one, bounded in the requests' bytes."""

    def __init__(self, most_bytes: int = PENDING_BYTES) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._less = threading.Condition()
        self._queue: SimpleQueue[Owed] = SimpleQueue()

    def put(self, owed: Owed) -> None:
        """Waits while more than the limit is pending, which ends when a reply is taken."""
        with self._less:
            self._less.wait_for(lambda: self._bytes <= self._most)
            self._bytes += owed.size
        self._queue.put(owed)

    def replies(self) -> Iterator[bytes]:
        """Each when it is there, until the source has ended."""
        while (owed := self._queue.get()).reply is not None:
            yield owed.reply.result()
            with self._less:
                self._bytes -= owed.size
                self._less.notify()


def _write(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(fd, rest) :]
