"""The router's end of the way to the tracer (embedpool.traces): a socket that is written to and never waited for.

No record is worth a request's time. What the socket's buffer has no room for (the tracer is behind, or being started
again) is dropped and counted.
"""

from __future__ import annotations

import logging
import socket

from embedpool.router.traces import Traces
from embedpool.traces.records import PACKET_RECORDS, packets

log = logging.getLogger("embedpool.router")


class Outlet:
    """`sock` is a SOCK_SEQPACKET whose other end the tracer reads."""

    def __init__(self, sock: socket.socket, roots: bool) -> None:
        self.traces = Traces(roots)
        self.sent = self.dropped = 0  # requests, since the router's start
        self._sock = sock

    def flush(self, least: int = 1) -> None:
        """Sends what waits, if it is at least so much."""
        waiting = self.traces.ended
        if len(waiting) < least:
            return
        for packet, count in packets(waiting):
            try:
                self._sock.send(packet, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self.sent += count
            except OSError:  # full; or nobody is there, of which the supervisor hears
                if not self.dropped:
                    log.warning("requests end faster than their traces are made: some have none, see `traces` in status")
                self.dropped += count
        waiting.clear()

    def flush_full(self) -> None:
        """Sends what waits if it makes a packet."""
        self.flush(PACKET_RECORDS)

    def facts(self) -> dict[str, int]:
        """For `status`."""
        return {"recorded": self.sent, "dropped": self.dropped}
