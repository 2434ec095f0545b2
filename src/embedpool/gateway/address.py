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
        raise ConfigError(f"a gateway listens on HOST:PORT, as 127.0.0.1:8080, not {listen!r}")
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


def reserve(host: str, port: int) -> socket.socket:
    """A port for a library that binds it by itself (SO_REUSEPORT): while this socket is open, which does not listen, no other
    program gets it. Raises ConfigError when the address cannot be had.

    SO_REUSEPORT lets all sockets of one user share a port, another pool's too: so it is tried without, first. It is held
    without SO_REUSEADDR, by which a socket that does not listen would let others have the port.
    """
    tried = bind(host, port)[0]
    address, family = tried.getsockname()[:2], tried.family
    tried.close()
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except OSError as error:
        held.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error
    return held


def where(sock: socket.socket) -> str:
    """HOST:PORT."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url(sock: socket.socket) -> str:
    """Where HTTP's clients find it."""
    return f"http://{where(sock)}"
