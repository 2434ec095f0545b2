"""How long 10,000 vectors of 768 float32 need from the worker to the caller, beside what computing them takes.

whole: from calling Client.embed_documents with 10,000 texts to having the array; one worker and the echo model;
computing: of that, what the encoder took, texts to tokens and tokens to vectors, by the worker's own clock around each call;
writing: what else the worker's jobs took: normalising each row and writing it at its place in the client's segment;
waiting: the rest, in which the worker had no job: before the first, between two, and after the last;
after the last: from the instant at which the last row lies in its place to the caller's having the array.

The same array, in memory and computed, by other ways, each from its first byte in one process to a usable array:
json: orjson's encoding of the array and decoding of that text into an array, in one process: no socket;
socket: sent over a Unix stream socket by another process and received into an array that is there already;
inline: the whole again with vectors through the pool's socket (segment_bytes=0).
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from common import median, write
from embedpool import Client
from timed_worker import JOB

ROWS, DIM = 10_000, 768
SEGMENT_BYTES = 64 << 20
REPEATS = 10
GOAL_MS = 3.0
HERE = Path(__file__).parent
SUPERVISOR = f"""
import sys
from embedpool.config import Config
from embedpool.supervise.serve import serve
from embedpool.supervise.supervisor import Programs
config = Config(model="echo:{DIM}", workers=1, runtime_dir=sys.argv[1])
ready = lambda started: print(started.endpoint, flush=True)
sys.exit(serve(config, ready, lambda text: print(text, file=sys.stderr), int(sys.argv[2]), Programs(worker="timed_worker")))
"""


@contextmanager
def timed_pool() -> Iterator[tuple[str, Path]]:
    """(endpoint, jobs file) of a pool with one worker that keeps its times; ended with the block."""
    with tempfile.TemporaryDirectory(prefix="embedpool-bench-", dir="/dev/shm") as made:
        jobs, (theirs, ours) = Path(made) / "jobs", os.pipe()
        environ = {**os.environ, "PYTHONPATH": str(HERE), "EMBEDPOOL_BENCH_JOBS": str(jobs)}
        command = [sys.executable, "-c", SUPERVISOR, str(Path(made) / "run"), str(theirs)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, pass_fds=(theirs,))
        os.close(theirs)
        try:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip()
            if not endpoint:
                raise RuntimeError(f"the pool ended with status {process.wait(10)}")
            yield endpoint, jobs
        finally:
            os.close(ours)
            process.terminate()
            process.wait(30)


@dataclass(frozen=True)
class Parts:
    """Of one call, in ms."""

    whole: float
    computing: float
    writing: float
    before_first: float
    between: float
    after_last: float

    @property
    def waiting(self) -> float:
        return self.before_first + self.between + self.after_last


def parts(began_at: float, ended_at: float, jobs: np.ndarray) -> Parts:
    """Of the call between the two instants; jobs: float64[n, 3], see timed_worker."""
    first_at, last_at, in_jobs = jobs[:, 0].min(), jobs[:, 1].max(), float((jobs[:, 1] - jobs[:, 0]).sum())
    computing = float(jobs[:, 2].sum())
    seconds = (
        ended_at - began_at,
        computing,
        in_jobs - computing,
        first_at - began_at,
        last_at - first_at - in_jobs,
        ended_at - last_at,
    )
    return Parts(*(float(s) * 1e3 for s in seconds))


def calls(endpoint: str, jobs: Path, segment_bytes: int, repeats: int) -> tuple[list[Parts], np.ndarray]:
    """The parts of each call, without the first, which maps the segment; and the last array."""
    found = []
    with Client(endpoint, segment_bytes=segment_bytes) as pool:
        for repeat in range(repeats + 1):
            texts = [f"document {repeat} {row}" for row in range(ROWS)]
            vectors = None  # gives its room back
            os.truncate(jobs, 0)
            began_at = time.monotonic()
            vectors = pool.embed_documents(texts)
            ended_at = time.monotonic()
            if segment_bytes and vectors.base is None:
                raise RuntimeError("the result is a copy, not a view of shared memory")
            found.append(parts(began_at, ended_at, np.frombuffer(jobs.read_bytes()).reshape(-1, JOB.size // 8)))
        assert vectors is not None
        return found[1:], vectors.copy()


# ── other ways ───────────────────────────────────────────────────────────────────────────────────────────────────────


def by_json(vectors: np.ndarray) -> dict[str, float]:
    began = time.perf_counter()
    text = orjson.dumps(vectors, option=orjson.OPT_SERIALIZE_NUMPY)
    encoded = time.perf_counter()
    found = np.array(orjson.loads(text), np.float32)
    ended = time.perf_counter()
    if not np.array_equal(found, vectors):
        raise RuntimeError("JSON gave another array")
    return {"encode_ms": (encoded - began) * 1e3, "decode_ms": (ended - encoded) * 1e3, "megabytes": len(text) / 1e6}


def by_socket(vectors: np.ndarray) -> float:
    """Milliseconds from a byte's asking for the array to its last byte's being here; the sender is a forked process."""
    ours, theirs = socket.socketpair()
    raw, found = vectors.data.cast("B"), np.zeros_like(vectors)
    child = os.fork()
    if not child:
        ours.close()
        theirs.recv(1)
        theirs.sendall(raw)
        os._exit(0)
    theirs.close()
    place, at = found.data.cast("B"), 0
    began = time.perf_counter()
    ours.send(b"!")
    while at < len(place):
        got = ours.recv_into(place[at:])
        if not got:
            raise RuntimeError("the sender ended in the middle")
        at += got
    took_ms = (time.perf_counter() - began) * 1e3
    os.waitpid(child, 0)
    ours.close()
    if not np.array_equal(found, vectors):
        raise RuntimeError("the socket gave another array")
    return took_ms


def in_ms(found: list[Parts]) -> dict[str, float]:
    names = ("whole", "computing", "writing", "waiting", "before_first", "between", "after_last")
    return {f"{name}_ms": round(median([getattr(one, name) for one in found]), 2) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    given = parser.parse_args()
    with timed_pool() as (endpoint, jobs):
        shared, vectors = calls(endpoint, jobs, SEGMENT_BYTES, given.repeats)
        inline, _ = calls(endpoint, jobs, 0, given.repeats)
    texts = [by_json(vectors) for _ in range(3)]
    results: dict[str, Any] = {
        "rows": ROWS,
        "dim": DIM,
        "megabytes": round(vectors.nbytes / 1e6, 2),
        "shared": in_ms(shared),
        "after_last_ms_of_each_repeat": [round(one.after_last, 3) for one in shared],
        "waiting_ms_of_each_repeat": [round(one.waiting, 3) for one in shared],
        "inline": in_ms(inline),
        "json": {name: round(median([one[name] for one in texts]), 1) for name in texts[0]},
        "socket_ms": round(median([by_socket(vectors) for _ in range(given.repeats)]), 2),
    }
    results["goals"] = {f"after the last row <= {GOAL_MS:g} ms": results["shared"]["after_last_ms"] <= GOAL_MS}
    write("delivery", (__doc__ or "").strip(), results)


if __name__ == "__main__":
    main()
