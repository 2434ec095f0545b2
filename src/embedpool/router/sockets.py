"""The router's sockets: made, read and written without ever waiting."""

from __future__ import annotations

import zmq

from embedpool.edge import has_message

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
        sock.send(to, zmq.SNDMORE | zmq.NOBLOCK)
        if payload:
            sock.send(frame, zmq.SNDMORE | zmq.NOBLOCK)
            sock.send(payload, zmq.NOBLOCK)
        else:
            sock.send(frame, zmq.NOBLOCK)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
            return False
        raise
    return True


def receive(sock: zmq.Socket[bytes]) -> tuple[bytes, bytes, bytes] | None:
    """(sender, frame, payload) of one message; frames beyond are read and dropped. None when none has arrived."""
    if not has_message(sock):
        return None
    sender = sock.recv(zmq.NOBLOCK)
    frame = sock.recv() if sock.get(zmq.RCVMORE) else b""
    payload = b""
    if sock.get(zmq.RCVMORE):
        payload = sock.recv()
        while sock.get(zmq.RCVMORE):
            sock.recv()
    return sender, frame, payload
