"""What tests of the gateway share: a pool that is none, and one request to an application in this process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import httpx

from embedpool.client import AsyncClient
from embedpool.client.aio import Answer
from embedpool.errors import EmbedpoolError
from embedpool.gateway.app import make_app
from embedpool.gateway.options import Options
from embedpool.protocol import ModelCard, Run
from embedpool.router.tally import ClassTally, RunTally
from tests.support import expected, read_line

CARD = ModelCard("echo:384", 384, 512, "echo-384-1", ("query", "document"), pooling="mean")
_QUICK, _BULK = ClassTally(requests=10, refused={"overloaded": 4}, dropped=1), ClassTally(requests=1)
_QUICK.answer(2, 20, (3.0, 1.0, 8.0), 15.0)
_QUICK.answer(1, 9, (300.0, 1.0, 8.0), 310.0)
_RUNS = RunTally()
_RUNS.add([Run(2, 16, 8.0, 24), Run(1, 500, 90.0, 500)])
_WORKER: dict[str, Any] = {"pid": 11, "cores": [], "jobs_done": 8, "rows_done": 9, "busy_s": 1.5, "running": None}
STATUS: dict[str, Any] = {  # as docs/protocol.md has it, as far as a gateway looks
    "state": "serving",
    "reason": "",
    "uptime_s": 100.0,
    "pool": {"version": "1.2.3", "pid": "1", "endpoint": "ipc:///run/pool.sock", "plan": "", "runtime_dir": "/run"},
    "router": {"pid": 2},
    "reload": {"count": 1, "state": "done", "reason": ""},
    "model": {"name": CARD.name, "fingerprint": CARD.fingerprint, "precision": CARD.precision, "dim": CARD.dim},
    "queue": {"requests": 3, "rows": 7, "bytes": 900, "estimated_ms": 12.0, "oldest_ms": 250.0},
    "sessions": {"open": 2, "requests_open": 4, "segments": 1, "segment_bytes": 4096},
    "cost": {"unit_ms": 0.05, "error": 0.1, "chars_per_token": 4.0, "row_ms": {}},
    "counters": {"requests": 11, "answered": 2, "jobs": 6, "requeued": 1, "alike": 5, "late_answers": 1}
    | {"rows": 3, "tokens": 29, "refused": {"overloaded": 4}},
    "classes": {"interactive": _QUICK.facts(), "bulk": _BULK.facts()},
    "runs": _RUNS.facts(),
    "workers": [
        {**_WORKER, "index": 0, "state": "idle", "restarts": 1, "cores": [2, 3]},
        {**_WORKER, "index": 1, "state": "busy", "restarts": 2, "pid": 12}
        | {"running": {"rows": 3, "ms": 40.0, "interactive": True}},
    ],
}


class FakePool:
    """Gives the echo model's vectors at once, or raises `error`; `asked` is what it was asked last."""

    def __init__(self, error: Exception | None = None, status: dict[str, Any] | None = None, card: ModelCard = CARD) -> None:
        self.error = error
        self.card = card
        self.state = STATUS if status is None else status
        self.asked: dict[str, Any] = {}
        self.calls = 0

    async def answer(self, texts: Sequence[str], **keywords: Any) -> Answer:
        self.calls += 1
        self.asked = {"texts": list(texts), **keywords}
        if self.error is not None:
            raise self.error
        vectors = expected(texts, keywords.get("dim") or 384)
        return Answer(vectors, 2 * len(texts), self.card.fingerprint, queue_ms=3.2, tokenize_ms=0.9, run_ms=20.0)

    async def model(self, name: str = "", *, timeout_s: float = 5.0) -> ModelCard:  # noqa: ARG002 - AsyncClient's own
        return self.card

    async def status(self, *, timeout_s: float = 5.0) -> str:  # noqa: ARG002
        if isinstance(self.error, EmbedpoolError):
            raise self.error
        return json.dumps(self.state)

    async def close(self) -> None:
        pass


def app_of(pool: FakePool, options: Options | None = None) -> Any:
    return make_app(cast(AsyncClient, pool), options)


def request(
    method: str, path: str, pool: FakePool | None = None, options: Options | None = None, **more: Any
) -> httpx.Response:
    """One request to a fresh application. An exception that it lets through fails the test."""

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(app_of(pool or FakePool(), options))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, **more)

    return asyncio.run(go())


def post(
    path: str, body: object, pool: FakePool | None = None, options: Options | None = None, **headers: str
) -> httpx.Response:
    """`headers` with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request("POST", path, pool, options, json=body, headers=named)


# ── a real one ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Gateway:
    """A running gateway process."""

    process: subprocess.Popen[str]
    url: str
    grpc: str = ""  # HOST:PORT, with --grpc

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def post(self, path: str, body: object, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60.0, **more)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60.0)

    def number(self, name: str) -> float:
        """A counter or gauge of /metrics."""
        return next(float(line.split()[1]) for line in self.get("/metrics").text.splitlines() if line.split()[0] == name)


@contextmanager
def gateway(endpoint: str, *flags: str) -> Iterator[Gateway]:
    """A gateway process on a port of its own, ended by SIGTERM and checked to end well."""
    command = [sys.executable, "-P", "-m", "embedpool.gateway", "--endpoint", endpoint, "--listen", "127.0.0.1:0", *flags]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        line = read_line(process, 30.0)
        assert line.startswith("embedpool gateway listens on "), line
        places = [word for word in line.split() if "://" in word]
        yield Gateway(process, places[-1], places[0].removeprefix("grpc://") if places[1:] else "")
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
