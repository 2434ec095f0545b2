"""Messages to the service manager that started this process, over the socket that it names (sd_notify(3)). No decision here.

The protocol is a datagram of assignments, so this is own code: the libraries for it are unmaintained or bind libsystemd.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import MutableMapping

from embedpool.supervise.notices import Notices, Sight


class Notify:
    """To `address`, "" for nobody. A manager that does not listen is no reason to fail: nothing here raises or waits."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s
        self._address = f"\0{address[1:]}" if address.startswith("@") else address  # unix(7): an abstract socket
        self._notices = Notices(watchdog_s)

    def tell(self, sight: Sight) -> None:
        """To be called several times a second: sends what is due, mostly nothing."""
        lines = self._notices.due(sight, time.monotonic()) if self._address else []
        if lines:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_manager:
                to_manager.setblocking(False)
                to_manager.sendto("\n".join(lines).encode(), self._address)


def taken(environ: MutableMapping[str, str], pid: int) -> Notify:
    """What systemd asks of process `pid`, taken out of its environment: its children are not the service, and must not be
    taken for it. WATCHDOG_PID names the one that is watched, where that is not everyone (sd_watchdog_enabled(3))."""
    address, usec, watched = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
    is_watched = watched in ("", str(pid)) and usec.isdecimal()
    return Notify(address, int(usec) / 1e6 if is_watched else 0.0)
