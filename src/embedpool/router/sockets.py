"""The router's sockets: made, read and written without ever waiting."""

from __future__ import annotations

import zmq

from embedpool.edge import NOBLOCK, RCVMORE, SNDMORE_NOBLOCK, has_message

HANDSHAKE_MS = 2000  # a connection that does not speak ZMTP is closed after this
UNREAD_REQUESTS = 64  # per client, of up to max_request_bytes each; what is beyond waits at the client
QUEUED_ANSWERS = 20_000  # per client that does not read; beyond, its session is closed


def router_socket(context: zmq.Context[zmq.Socket[bytes]], most_bytes: int, unread: int) -> zmq.Socket[bytes]:
    """Not bound yet. A message of more than `most_bytes` ends its connection."""
    sock = context.socket(zmq.ROUTER)
    sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
    sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    sock.setsockopt(zmq.MAXMSGSIZE, most_bytes)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDHWM, QUEUED_ANSWERS)
    sock.setsockopt(zmq.RCVHWM, unread)
    sock.setsockopt(zmq.BACKLOG, 512)
    return sock


def send(sock: zmq.Socket[bytes], to: bytes, frame: bytes, payload: bytes | bytearray = b"") -> bool:
    """False when the peer is gone or its queue is full. Never waits."""
    try:
        sock.send(to, SNDMORE_NOBLOCK)
        if payload:
            sock.send(frame, SNDMORE_NOBLOCK)
            sock.send(payload, NOBLOCK)
        else:
            sock.send(frame, NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
            return False
        raise
    return True


def receive(sock: zmq.Socket[bytes]) -> tuple[bytes, bytes, bytes] | None:
    """(sender, frame, payload) of one message; frames beyond are read and dropped. None when none has arrived."""
    if not has_message(sock):
        return None
    recv = sock.recv
    sender, frame = recv(NOBLOCK), recv(NOBLOCK)  # a peer's message has a frame at least, and all of them arrive together
    if not sock.get(RCVMORE):
        return sender, frame, b""
    payload = recv(NOBLOCK)
    while sock.get(RCVMORE):
        recv(NOBLOCK)
    return sender, frame, payload
