"""A server with OpenAI's /v1/embeddings, started as a child or found at an endpoint, and a client with kept connections.

The client is as little as possible (the standard library's), so that what is measured is the server. Many texts go out as
requests of `batch` texts, STREAMS of them open at a time.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import line
import numpy as np

STREAMS = 4
START_S = 90.0


class Server:
    """`command` gets the port where it says {port}. `body` is added to each request (a model's name, a format). An
    application reads PEER_MODEL, PEER_CORES and PEER_PORT of its environment."""

    def __init__(self, order: dict[str, Any], command: Sequence[str], path: str, body: dict[str, Any], *names: str) -> None:
        self._path, self._body, self._names = path, body, names
        self._process: subprocess.Popen[bytes] | None = None
        self._of_thread = threading.local()
        self._streams = ThreadPoolExecutor(STREAMS)
        if order.get("endpoint"):
            self._port = int(order["endpoint"])
            return
        self._port = _free_port()
        environ = {"PEER_MODEL": order["model"], "PEER_CORES": str(order["cores"]), "PEER_PORT": str(self._port)}
        full = [part.replace("{port}", str(self._port)) for part in command]
        self._process = subprocess.Popen(full, env={**os.environ, **environ})
        self._wait()

    def _wait(self) -> None:
        """Until it answers: a server may listen before its model is loaded."""
        assert self._process is not None
        end_at, reason = time.monotonic() + START_S, "no answer"
        while time.monotonic() < end_at:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self._process.returncode}")
            try:
                self.query("hello")
                return
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                reason = str(error)
            time.sleep(0.05)
        raise RuntimeError(f"the server did not answer within {START_S:g} s: {reason}")

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        parts = self._streams.map(self._ask, [texts[at : at + batch] for at in range(0, len(texts), batch)])
        return np.concatenate(list(parts))

    def query(self, text: str) -> np.ndarray:
        vector: np.ndarray = self._ask([text])[0]
        return vector

    def _ask(self, texts: list[str]) -> np.ndarray:
        body = json.dumps({"input": texts, **self._body})
        try:
            status, content = self._post(body)
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            status, content = self._post(body)  # servers close a connection that was not used for some seconds
        if status != 200:
            raise RuntimeError(f"status {status}: {content[:300].decode(errors='replace')}")
        return np.array([_vector(row["embedding"]) for row in json.loads(content)["data"]], np.float32)

    def _post(self, body: str) -> tuple[int, bytes]:
        connection = self._connection()
        try:
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except Exception:
            connection.close()
            self._of_thread.connection = None
            raise

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's own, kept open."""
        found: http.client.HTTPConnection | None = getattr(self._of_thread, "connection", None)
        if found is None:
            found = self._of_thread.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            found.connect()
            found.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found

    def about(self) -> dict[str, Any]:
        return {"versions": line.versions(*self._names), "endpoint": str(self._port)}

    def close(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _vector(given: list[float] | str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(given), np.float32) if isinstance(given, str) else np.array(given, np.float32)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def program(name: str) -> str:
    """A command that was installed beside this Python."""
    from pathlib import Path

    return str(Path(sys.executable).parent / name)
