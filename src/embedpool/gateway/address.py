"""Where a gateway listens: the only part of it that the supervisor imports, which holds the sockets. Standard library alone."""

from __future__ import annotations

import ipaddress
import os
import socket

from embedpool.errors import ConfigError

ANSWER_MS = 60_000  # for a client to take some of its answer; one that never does must not keep it in memory
BACKLOG = 1024


def parse_listen(listen: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT. Raises ConfigError."""
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port[:6]) > 65_535:
        raise ConfigError(f"HTTP listens on HOST:PORT, as 127.0.0.1:8080, not {listen!r}")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """So many listening sockets on one address, among which the kernel spreads connections (SO_REUSEPORT, socket(7)). Raises
    ConfigError when the address cannot be had.

    Their connections inherit TCP_USER_TIMEOUT (tcp(7)): the kernel ends one whose peer takes nothing of what is sent.
    """
    made: list[socket.socket] = []
    try:
        place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        family, address = socket.AddressFamily(place[0]), place[4][:2]
        for _ in range(count):
            sock = socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=count > 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ANSWER_MS)
            made.append(sock)
            address = sock.getsockname()[:2]  # the same port for all, where the kernel was to choose one
    except OSError as error:
        for sock in made:
            sock.close()
        # create_server puts more into strerror, and a name that is not found has a number of its own.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    return made


def url(sock: socket.socket) -> str:
    """Where clients find it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
