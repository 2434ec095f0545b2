"""Entry of the tracer, started by the supervisor only: `python -m embedpool.traces KIND LOG_FORMAT RECORDS LIFELINE READY`, the
last three of which are descriptors.

It reads what the router notes (records.py), and ends when nobody is left who could write it, having exported what it has read.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

from embedpool import __version__, logs
from embedpool.lifeline import die_first, end_with, name_process
from embedpool.traces.exporting import Exports, log, provider
from embedpool.traces.records import PACKET_BYTES, unpacked
from embedpool.traces.spans import write

FLUSH_S = 2.0  # for the last spans, at the end: less than the supervisor waits for its children
NICE = 10  # workers compute on every core that there is; this may wait


def main() -> None:
    # Stopping is the supervisor's business: the router's last records are still to come.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    kind, log_format = sys.argv[1:3]
    records, lifeline, ready = map(int, sys.argv[3:6])
    logs.begin("embedpool tracer", log_format)
    end_with(lifeline)
    die_first()
    os.nice(NICE)
    name_process("embedpool-trace")
    made, exports = provider(kind)
    tracer = made.get_tracer("embedpool", __version__)
    os.write(ready, b"1")
    os.close(ready)
    with socket.socket(fileno=records) as sock:
        while packet := sock.recv(PACKET_BYTES):
            day_ns = time.time_ns() - time.monotonic_ns()
            for record in unpacked(packet):
                write(record, tracer, exports, day_ns)
    flushing = threading.Thread(target=made.shutdown, daemon=True)
    flushing.start()
    flushing.join(FLUSH_S)
    _say_what_is_lost(exports)


def _say_what_is_lost(exports: Exports) -> None:
    if exports.lost or exports.waiting:
        log.warning("spans lost, since the tracer's start: %d", exports.lost + exports.waiting, extra={"event": "traces end"})


if __name__ == "__main__":
    main()
