"""The tracer of a pool: what it needs, how it is started, and the socket on which the router's records come to it.

Both ends are held here, so that a router or a tracer that ends leaves them to the next one, and what was sent in between waits
in the socket's buffer. When the supervisor lets go of them, the router's end is the last: the tracer reads to its end.
"""

from __future__ import annotations

import socket

from embedpool.config import Config, traces_protocol
from embedpool.errors import ConfigError
from embedpool.supervise.gateways import is_there
from embedpool.supervise.processes import Child, ready_pipe, spawn
from embedpool.supervise.slots import Slot

NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
BUFFER_BYTES = 1 << 20  # asked for; the kernel gives at most net.core.wmem_max: usually 200 kB, which is about 500 requests


class Tracing:
    """Raises ConfigError where a library is missing that `--traces` needs, or spans are wanted as they cannot be had."""

    def __init__(self, config: Config) -> None:
        self.slots: list[Slot] = []
        self._ends: list[socket.socket] = []
        if config.traces == "off":
            return
        _check(config)
        self._ends = [*socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
        self._ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.slots = [Slot("tracer")]

    @property
    def router_fds(self) -> list[int]:
        """What a router inherits: the end that is written to, or nothing."""
        return [self._ends[0].fileno()] if self._ends else []

    def start(self, config: Config, lifeline: int) -> tuple[Child, int]:
        """The tracer, and the end of a pipe from which a byte can be read once it reads records."""
        with ready_pipe() as (ready, tell):
            fds = [self._ends[1].fileno(), lifeline, tell]
            return spawn("tracer", "embedpool.traces", [config.traces, config.log_format, *map(str, fds)], fds), ready

    def close(self) -> None:
        """Idempotent."""
        for end in self._ends:
            end.close()


def _check(config: Config) -> None:
    missing = [name for name in NEEDED if not is_there(name)]
    if missing:
        raise ConfigError(f"traces needs {', '.join(missing)}: pip install 'embedpool[traces]'")
    if config.traces == "otlp" and traces_protocol() != "http/protobuf":
        raise ConfigError(
            f"traces are exported as http/protobuf, and OTEL_EXPORTER_OTLP_PROTOCOL asks for {traces_protocol()}: set it to"
            " http/protobuf, and the endpoint to the collector's port for that (4318)"
        )
