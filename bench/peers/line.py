"""The protocol between bench/peers.py and a script that runs one library: a JSON line in, a JSON line out.

Needs nothing but numpy, so that it runs in any peer's environment. The script is started with its order (JSON) as the only
argument, loads, and says `{"ready": {...}}`. Then, one after the other:

    {"do": "embed", "texts": [...], "batch": 32, "path": "v.npy"}  -> {"seconds": 1.2}, vectors in the file (path "": none)
    {"do": "queries", "texts": [...], "seconds": 1.0}              -> {"ms": [...]}, one after the other
    {"do": "open", "texts": [...], "due_s": [...]}                 -> {"ms": [...]}, begun when due, whatever became of others
    {"do": "repeat", "texts": [...], "batch": 32, "seconds": 3.0}  -> {"texts": 640, "seconds": 3.1}, again and again
    {"do": "end"}                                                  -> the script ends

What fails is answered with `{"error": "..."}`. Times are taken here: from the call of the library to having the array.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

ASKERS = 32  # open requests at the most; more than that are late anyway


class Peer(Protocol):
    """A library, loaded."""

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        """float32[len(texts), dim], in the way the library's documentation recommends for many texts."""

    def query(self, text: str) -> np.ndarray:
        """float32[dim], in the way it recommends for one short text. Servers: called by many threads at once."""

    def about(self) -> dict[str, Any]:
        """`versions`; a server adds its `endpoint`, to which further scripts of its kind connect."""

    def close(self) -> None: ...


def run(load: Callable[[dict[str, Any]], Peer]) -> None:
    """The whole life of a peer's script."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        peer = load(json.loads(sys.argv[1]))
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        raise
    say({"ready": peer.about()})
    try:
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "end":
                break
            try:
                say(ANSWERS[request["do"]](peer, request))
            except Exception as error:
                say({"error": f"{type(error).__name__}: {error}"})
    finally:
        peer.close()


def _embed(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    vectors = peer.embed(request["texts"], request["batch"])
    seconds = time.perf_counter() - began
    if len(vectors) != len(request["texts"]):
        raise ValueError(f"{len(vectors)} vectors of {len(request['texts'])} texts")
    if request["path"]:
        np.save(request["path"], np.asarray(vectors, np.float32))
    return {"seconds": seconds}


def _queries(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    ms: list[float] = []
    end_at = time.perf_counter() + request["seconds"]
    while (began := time.perf_counter()) < end_at or not ms:
        peer.query(request["texts"][len(ms) % len(request["texts"])])
        ms.append((time.perf_counter() - began) * 1e3)
    return {"ms": ms}


def _open(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    texts = request["texts"]

    def one(i: int, due_at: float) -> float:
        peer.query(texts[i % len(texts)])
        return (time.perf_counter() - due_at) * 1e3

    with ThreadPoolExecutor(ASKERS) as askers:
        # Every asker connects before the time is taken; how long the barrier holds is not measured.
        list(askers.map(peer.query, texts[:ASKERS]))
        began_at, asked = time.perf_counter(), []
        for i, due_s in enumerate(request["due_s"]):
            time.sleep(max(0.0, began_at + due_s - time.perf_counter()))
            asked.append(askers.submit(one, i, began_at + due_s))
        return {"ms": [each.result(30) for each in asked]}


def _repeat(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < request["seconds"]:
        peer.embed(request["texts"], request["batch"])
        count += len(request["texts"])
    return {"texts": count, "seconds": time.perf_counter() - began}


ANSWERS: dict[str, Callable[[Peer, dict[str, Any]], dict[str, Any]]] = {
    "embed": _embed,
    "queries": _queries,
    "open": _open,
    "repeat": _repeat,
}


def versions(*names: str) -> dict[str, str]:
    """Of the installed distributions."""
    from importlib.metadata import version

    return {name: version(name) for name in names}


def by_length(texts: Sequence[str]) -> list[int]:
    """Indices, the longest text first: what every batching loop does first, as padding costs time."""
    return sorted(range(len(texts)), key=lambda i: -len(texts[i]))
