"""A child process must not outlive its parent, however that one ended. Imported by every child's entry."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36  # prctl(2)


def end_with(lifeline: int) -> None:
    """Ends this process when the other end of a pipe is closed, that is, when the supervisor is gone.

    A thread, since the main one is inside the model for seconds at a time; the runtime releases the GIL there. Linux's
    parent-death signal comes on top: it also ends a worker that is stopped (SIGSTOP) or spins with the GIL held.
    """
    die_with_parent()

    def wait() -> None:
        while os.read(lifeline, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def die_with_parent() -> None:
    """The kernel sends SIGKILL to this process when its parent ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def name_process(name: str) -> None:
    """What `ps -o comm`, `top` and /proc/PID/comm show; at most 15 characters."""
    _prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]))


def die_first(score: int = 500) -> None:
    """Where memory runs out, the kernel ends this process before those that hold the pool together, for which it can be done
    again: half of all that may be used counts on top of what it uses (proc(5), oom_score_adj). Raising it is allowed."""
    with contextlib.suppress(OSError, ValueError):
        place = Path("/proc/self/oom_score_adj")
        place.write_text(str(max(score, int(place.read_text()))))


def adopt_orphans() -> None:
    """What descendants leave behind becomes this process's children, to be reaped by it."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: object) -> None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
