"""Entry of the router process: `python -m embedpool.router SPEC_JSON LINK_FD [RECORDS_FD]`, started by the supervisor only.

With RECORDS_FD there is a tracer, which reads its other end."""

from __future__ import annotations

import gc
import resource
import signal
import socket
import sys

from embedpool import logs
from embedpool.router.outlet import Outlet
from embedpool.router.server import Server
from embedpool.router.spec import RouterSpec


def main() -> None:
    # Stopping is the supervisor's business: it closes the link. A signal meant for the whole group must not cut answers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # As many clients as the configuration lets in: the soft limit of 1024 that is usual is for programs with select(2).
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    spec = RouterSpec.from_json(sys.argv[1])
    logs.begin("embedpool router", spec.log_format)
    link = socket.socket(fileno=int(sys.argv[2]))
    link.setblocking(False)
    outlet = Outlet(socket.socket(fileno=int(sys.argv[3])), spec.trace_roots) if sys.argv[3:] else None
    gc.freeze()  # what was imported lives for ever: keep the collector from walking it
    Server(spec, link, outlet).run()


if __name__ == "__main__":
    main()
