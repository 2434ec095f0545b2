"""A child process must not outlive its parent, however that one ended. Imported by every child's entry."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading

PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with(lifeline: int) -> None:
    """Ends this process when the other end of a pipe is closed, that is, when the supervisor is gone.

    A thread, since the main one is inside the model for seconds at a time; the runtime releases the GIL there. Linux's
    parent-death signal comes on top: it also ends a worker that is stopped (SIGSTOP) or spins with the GIL held.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        while os.read(lifeline, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
