"""What HTTP costs: one gateway process in front of a pool of the echo model, over keep-alive connections on loopback.

latency: from sending a request of one text to having the answer's last byte; against it, from calling Client.embed with one
text to having its array, each in turn within one run; what HTTP adds is the difference of the two medians;
large: the same for one request of 1,000 texts of 768 dimensions, so that what is computed is on both sides;
rate: single-text requests that the pool counts as answered between two instants between which 16 connections always have one
open; the gateway's and the router's processor time, all their threads, between these instants, divided by the requests. The
router stays awake for a moment after a job as short as the echo model's, and the less there is to do, the more of that it does.

Requests are written to bare sockets, and answers are read up to their length and not parsed: no client library is measured. The
load of the rate is a process of its own; its processor time per request is in the result, since on few cores it takes part of
what it measures.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import Neighbours, all_computed, cpu_s, loads, median, percentile, told_to_begin, wait_for_workers, write
from embedpool import Pool

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.gateway import Gateway, gateway  # noqa: E402 - found by the path that is set above
from tests.support import router_of, workers_of  # noqa: E402

TEXT = "which planet is known as the red planet?"
CONNECTIONS = 16
ROWS, DIM = 1000, 768  # of the large answer
WARM_UP = 200
RAW, NPY = "application/octet-stream", "application/x-npy"


# ── bare HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────


def post(path: str, body: object, accept: str = "*/*") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\naccept: {accept}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


@dataclass(frozen=True)
class Form:
    """A way to ask, and how its answer becomes vectors: looked at once, outside what is timed."""

    request: Callable[[list[str]], bytes]
    vectors: Callable[[bytes], Any]


def _openai(texts: list[str], accept: str = "*/*") -> bytes:
    return post("/v1/embeddings", {"input": texts, "model": "", "encoding_format": "base64"}, accept)


def _of_base64(body: bytes) -> Any:
    return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in json.loads(body)["data"]])


FORMS = {
    "json": Form(lambda texts: post("/embed", {"inputs": texts}), lambda body: np.array(json.loads(body), np.float32)),
    "base64": Form(_openai, _of_base64),
    "raw": Form(lambda texts: post("/embed", {"inputs": texts}, RAW), lambda body: np.frombuffer(body, "<f4").reshape(1, -1)),
}
LARGE = {
    "npy": Form(lambda texts: _openai(texts, NPY), lambda body: np.load(io.BytesIO(body))),
    "base64": Form(_openai, _of_base64),
}


@dataclass
class Connection:
    """One keep-alive connection. Raises where an answer is not 200."""

    sock: socket.socket
    _head: bytes = b""
    _body: list[bytes] = field(default_factory=list)
    _missing: int = -1  # bytes of the body that are still to come; -1: in the head

    @staticmethod
    def to(address: tuple[str, int]) -> Connection:
        sock = socket.create_connection(address, timeout=60.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(sock)

    def took(self) -> bytes | None:
        """Reads what has come; the body once it is whole, None before that."""
        data = self.sock.recv(1 << 20)
        if not data:
            raise RuntimeError("the gateway has closed the connection")
        if self._missing < 0:
            head, ended, data = (self._head + data).partition(b"\r\n\r\n")
            if not ended:
                self._head = head
                return None
            if not head.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"not an answer: {head!r} {data!r}")
            self._missing = int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        self._body.append(data)
        self._missing -= len(data)
        if self._missing:
            return None
        body, self._head, self._body, self._missing = b"".join(self._body), b"", [], -1
        return body

    def ask(self, request: bytes) -> bytes:
        self.sock.sendall(request)
        while (body := self.took()) is None:
            pass
        return body


# ── what HTTP adds ───────────────────────────────────────────────────────────────────────────────────────────────────


def added(pool: Pool, found: Gateway, forms: dict[str, Form], calls: int, rows: int) -> dict[str, Any]:
    """Milliseconds of each form and of the direct client, asked in turns."""
    connection, number = Connection.to(found.address), 0

    def texts() -> list[str]:
        nonlocal number
        number += 1
        return [f"{TEXT} {number} {row}" for row in range(rows)]

    def direct() -> float:
        asked = texts()
        began = time.perf_counter()
        pool.embed(asked)
        return (time.perf_counter() - began) * 1e3

    def over_http(form: Form) -> float:
        request = form.request(texts())
        began = time.perf_counter()
        connection.ask(request)
        return (time.perf_counter() - began) * 1e3

    for form in forms.values():
        asked = texts()
        if not np.allclose(form.vectors(connection.ask(form.request(asked))), pool.embed(asked), atol=1e-6):
            raise RuntimeError("not the pool's vectors")
    for _ in range(max(1, WARM_UP // rows)):
        _ = direct(), [over_http(form) for form in forms.values()]
    ms: dict[str, list[float]] = {name: [] for name in ("direct", *forms)}
    beside = Neighbours([found.process.pid, router_of(pool.pid), *workers_of(pool.pid)])
    for _ in range(calls):
        ms["direct"].append(direct())
        for name, form in forms.items():
            ms[name].append(over_http(form))
    connection.sock.close()
    all_computed(pool)
    medians = {f"{name}_p50_ms": round(median(values), 3) for name, values in ms.items()}
    p95 = {f"{name}_p95_ms": round(percentile(values, 95), 3) for name, values in ms.items()}
    beyond = {f"{name}_added_ms": round(median(ms[name]) - median(ms["direct"]), 3) for name in forms}
    return {**beyond, **medians, **p95, "cores_used_by_others": beside.cores()}


# ── rate ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(order: dict[str, Any]) -> None:
    """Until it is ended: each connection asks again as soon as it is answered, with a text that nobody else has open."""
    form, selector = FORMS[order["form"]], selectors.EpollSelector()
    for number in range(CONNECTIONS):
        connection = Connection.to((order["host"], order["port"]))
        requests = [form.request([f"{TEXT} {number} {i}"]) for i in range(2)]
        selector.register(connection.sock, selectors.EVENT_READ, (connection, requests))
    told_to_begin()
    for key in list(selector.get_map().values()):
        key.data[0].sock.sendall(key.data[1][0])
    while True:
        for key, _ in selector.select():
            connection, requests = key.data
            if connection.took() is not None:
                requests.reverse()
                connection.sock.sendall(requests[0])


@dataclass(frozen=True)
class Usage:
    """Counts that only grow, at one instant."""

    at: float
    answered: int
    refused: int  # with what a load before this one had open when it was ended
    gateway_s: float
    router_s: float
    load_s: float

    @staticmethod
    def now(pool: Pool, found: Gateway, load_pid: int) -> Usage:
        counters = json.loads(pool.status(timeout_s=30))["counters"]
        used = [cpu_s([pid]) for pid in (found.process.pid, router_of(pool.pid), load_pid)]
        return Usage(time.monotonic(), counters["answered"], sum(counters["refused"].values()), *used)


def rate(pool: Pool, found: Gateway, form: str, seconds: float) -> dict[str, float]:
    host, port = found.address
    with loads(__file__, [{"form": form, "host": host, "port": port}]) as (started,):
        started.begin(0.0)
        time.sleep(0.5)
        beside = Neighbours([found.process.pid, router_of(pool.pid), *workers_of(pool.pid), started.pid])
        first = Usage.now(pool, found, started.pid)
        time.sleep(seconds)
        last, others = Usage.now(pool, found, started.pid), beside.cores()
        if started.process.poll() is not None:
            raise RuntimeError(f"the load has ended with status {started.process.returncode}")
        if last.refused != first.refused:
            raise RuntimeError(f"{last.refused - first.refused} requests were refused")
    all_computed(pool)
    requests = last.answered - first.answered
    return {
        "requests_per_s": round(requests / (last.at - first.at)),
        "gateway_us": round((last.gateway_s - first.gateway_s) / requests * 1e6, 1),
        "router_us": round((last.router_s - first.router_s) / requests * 1e6, 1),
        "load_us": round((last.load_s - first.load_s) / requests * 1e6, 1),
        "gateway_cores": round((last.gateway_s - first.gateway_s) / (last.at - first.at), 2),
        "cores_used_by_others": others,
    }


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(calls: int, large_calls: int, seconds: float) -> dict[str, dict[str, Any]]:
    """One repeat, in fresh processes."""
    found: dict[str, dict[str, Any]] = {}
    with Pool("echo", workers=1) as pool, gateway(pool.endpoint) as http:
        wait_for_workers(pool, 1)
        found["latency"] = added(pool, http, FORMS, calls, 1)
        found |= {f"rate_{form}": rate(pool, http, form, seconds) for form in FORMS}
    with Pool(f"echo:{DIM}", workers=1) as pool, gateway(pool.endpoint) as http:
        wait_for_workers(pool, 1)
        found["large"] = added(pool, http, LARGE, large_calls, ROWS)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="of each form, for the latency")
    parser.add_argument("--large-calls", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each form, for the rate")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--load", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        load(given.load)
        return
    repeats = [run(given.calls, given.large_calls, given.seconds) for _ in range(given.repeats)]
    middle = {part: {name: median([one[part][name] for one in repeats]) for name in repeats[0][part]} for part in repeats[0]}
    write(
        "gateway",
        " ".join((__doc__ or "").split()),
        {
            "connections": CONNECTIONS,
            "workers": 1,
            **middle,
            "of_each_repeat": repeats,
            "goals": {
                "HTTP adds <= 1.5 ms": all(middle["latency"][f"{form}_added_ms"] <= 1.5 for form in FORMS),
                ">= 1,500 requests/s": all(middle[f"rate_{form}"]["requests_per_s"] >= 1500 for form in FORMS),
                "a large npy <= 10 ms": middle["large"]["npy_added_ms"] <= 10,
                "a large base64 <= 25 ms": middle["large"]["base64_added_ms"] <= 25,
            },
        },
    )


if __name__ == "__main__":
    main()
