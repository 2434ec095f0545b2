"""The keyboard while a screen is shown: single keys, not echoed.

Rules
1. What was found is put back on leaving the context, by whatever way.
2. Ctrl-C stays a signal. Ctrl-Z does not: it would leave a shell behind in a terminal that shows our screen.
"""

from __future__ import annotations

import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

_CC = 6  # in tcgetattr's list (termios(3): c_cc)
_DISABLED = b"\0"  # _POSIX_VDISABLE on Linux


@contextmanager
def keys() -> Iterator[int | None]:
    """The descriptor from which keys can be read as they are pressed; None where stdin is no terminal (then q is not heard)."""
    if not sys.stdin.isatty():
        yield None
        return
    fd = sys.stdin.fileno()
    found = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSADRAIN)
        quiet = termios.tcgetattr(fd)
        quiet[_CC][termios.VSUSP] = _DISABLED
        termios.tcsetattr(fd, termios.TCSADRAIN, quiet)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, found)
