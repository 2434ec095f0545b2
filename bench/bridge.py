"""What `embedpool-bridge` costs, in front of a pool of the echo model of 768 dimensions, asked as AkiDB asks: one JSON line
into its stdin, one line out of its stdout.

time: from writing a request's line to having the whole reply's line; against it, from calling Client.embed with as many texts
to having their array, each in turn within one run; what the bridge adds is the difference of the two medians. Neither writing
the request as JSON nor parsing the reply is in it: that is AkiDB's work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common import Neighbours, all_computed, median, percentile, wait_for_workers, write
from embedpool import Pool

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import router_of, workers_of  # noqa: E402 - found by the path that is set above

TEXT = "which planet is known as the red planet?"
MODEL = "echo:768"
SIZES = (1, 32)  # texts; AkiDB sends at most 32
WARM_UP = 50


class Bridge:
    """The child process, with its pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def ask(self, line: bytes) -> bytes:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()
        reply = self.process.stdout.readline()
        if not reply.startswith(b'{"status":"ok"'):
            raise RuntimeError(f"not an answer: {reply[:200]!r}")
        return reply


@contextmanager
def bridge(endpoint: str) -> Iterator[Bridge]:
    """The script as it is installed, with the model loaded; ended by the end of its stdin, and checked to end well."""
    command = [str(Path(sys.executable).with_name("embedpool-bridge")), "onnx_server.py"]
    environ = os.environ | {"EMBEDPOOL_ENDPOINT": endpoint}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        try:
            found = Bridge(process)
            found.ask(request("ping"))
            found.ask(request("load_model", model=MODEL, cache_dir="~/.cache/akidb/models"))
            yield found
            process.communicate(timeout=10)
            if process.returncode:
                raise RuntimeError(f"the bridge ended with status {process.returncode}")
        finally:
            process.kill()


def request(method: str, **params: Any) -> bytes:
    return json.dumps({"method": method, "params": params}).encode() + b"\n"


def run(calls: int) -> dict[str, dict[str, float]]:
    """One repeat, in fresh processes: per number of texts, what is added."""
    with Pool(MODEL, workers=1) as pool, bridge(pool.endpoint) as child:
        wait_for_workers(pool, 1)
        found = {f"texts_{size}": added(pool, child, size, calls) for size in SIZES}
        all_computed(pool)
    return found


def added(pool: Pool, child: Bridge, size: int, calls: int) -> dict[str, float]:
    direct_ms, bridge_ms = list[float](), list[float]()
    beside = Neighbours([child.process.pid, router_of(pool.pid), *workers_of(pool.pid)])
    for number in range(WARM_UP + calls):
        texts = [f"{TEXT} {size} {number} {row}" for row in range(size)]
        began = time.perf_counter()
        vectors = pool.embed(texts)
        direct_ms.append((time.perf_counter() - began) * 1e3)
        texts = [f"{text} again" for text in texts]
        line = request("embed_batch", model=MODEL, inputs=texts, normalize=True)
        began = time.perf_counter()
        reply = child.ask(line)
        bridge_ms.append((time.perf_counter() - began) * 1e3)
        if not number and not np.allclose(json.loads(reply)["embeddings"], pool.embed(texts), atol=1e-6):
            raise RuntimeError("not the pool's vectors")
        del vectors
    direct_ms, bridge_ms = direct_ms[WARM_UP:], bridge_ms[WARM_UP:]
    return {
        "added_ms": round(median(bridge_ms) - median(direct_ms), 3),
        "direct_p50_ms": round(median(direct_ms), 3),
        "bridge_p50_ms": round(median(bridge_ms), 3),
        "direct_p95_ms": round(percentile(direct_ms, 95), 3),
        "bridge_p95_ms": round(percentile(bridge_ms, 95), 3),
        "cores_used_by_others": beside.cores(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="of each number of texts")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    repeats = [run(given.calls) for _ in range(given.repeats)]
    middle = {part: {name: median([one[part][name] for one in repeats]) for name in repeats[0][part]} for part in repeats[0]}
    write(
        "bridge",
        " ".join((__doc__ or "").split()),
        {
            "model": MODEL,
            "workers": 1,
            **middle,
            "of_each_repeat": repeats,
            "goals": {f"{size} texts: adds <= 1 ms": middle[f"texts_{size}"]["added_ms"] <= 1.0 for size in SIZES},
        },
    )


if __name__ == "__main__":
    main()
