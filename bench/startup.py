"""How soon a pool answers whose model was prepared before, and whether its first requests are slower than later ones.

supervisor: from starting `embedpool serve` to its having locked its runtime directory: Python, imports, configuration;
router: from there to the router's socket being there, which also takes finding the model in the cache;
worker: from there to the line that says that the pool is ready, which it prints when the first worker has computed a text;
first answer: from there to the first vector in a client that connects now;
in all: from starting the process to that vector;
requests: the first ten calls of Client.embed_query in another fresh pool, by a client that is connected before, each from
calling to having the vector.

Each pool has a fresh runtime directory. One that comes before all and is not counted has read the files once.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import median, write
from embedpool import Client
from embedpool.config import SOCKET
from embedpool.supervise.place import LOCK

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.fixtures import embeddinggemma  # noqa: E402 - found by the path that is set above

POOLS, REQUESTS = 10, 10
GOAL_S, GOAL_RATIO = 1.5, 2.0
LOOK_S = 0.001  # how often it is looked whether a file is there: as exact as the steps are told
LONGEST_S = 60.0
STEPS = ("supervisor", "router", "worker", "first_answer")
TEXT = "which planet is known as the red planet, and what makes it look like that? ({})"


@dataclass(frozen=True)
class Case:
    label: str
    model: str
    precision: str


@contextmanager
def serving(case: Case, cache: Path, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`embedpool serve` as its own process, being started; ended with the block."""
    theirs, ours = os.pipe()
    command = [sys.executable, "-P", "-m", "embedpool", "serve", "--ready-json", f"--owner-fd={theirs}"]
    command += ["--model", case.model, "--precision", case.precision, "--cache", str(cache), "--runtime-dir", str(place)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, pass_fds=(theirs,))
    os.close(theirs)
    try:
        yield process
    finally:
        os.close(ours)
        process.terminate()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def seen_at(path: Path, give_up_at: float) -> float:
    """The instant at which the file is there."""
    while not path.exists():
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{path} did not appear within {LONGEST_S:g} s")
        time.sleep(LOOK_S)
    return time.monotonic()


def ready_at(process: subprocess.Popen[bytes]) -> float:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], LONGEST_S)[0]:
        raise RuntimeError(f"not ready within {LONGEST_S:g} s")
    at, line = time.monotonic(), process.stdout.readline()
    if b"endpoint" not in line:
        raise RuntimeError(f"the pool did not start: {line.decode()}")
    return at


def one_start(case: Case, cache: Path) -> tuple[dict[str, float], list[float]]:
    """(seconds of each step, milliseconds of each request) of one fresh pool."""
    with tempfile.TemporaryDirectory(prefix="embedpool-bench-", dir="/dev/shm") as made:
        place = Path(made) / "run"
        instants = [time.monotonic()]
        with serving(case, cache, place) as process:
            give_up_at = instants[0] + LONGEST_S
            instants += [seen_at(place / LOCK, give_up_at), seen_at(place / SOCKET, give_up_at), ready_at(process)]
            with Client(f"ipc://{place / SOCKET}") as first:
                first.embed_query(TEXT.format("first"))
                instants.append(time.monotonic())
            steps = {name: b - a for name, a, b in zip(STEPS, instants, instants[1:], strict=False)}
    with tempfile.TemporaryDirectory(prefix="embedpool-bench-", dir="/dev/shm") as made:
        place = Path(made) / "run"
        with serving(case, cache, place) as process:
            ready_at(process)
            with Client(f"ipc://{place / SOCKET}") as pool:
                pool.model()
                return steps, [request_ms(pool, i) for i in range(REQUESTS)]


def request_ms(pool: Client, number: int) -> float:
    began = time.perf_counter()
    pool.embed_query(TEXT.format(number))
    return (time.perf_counter() - began) * 1e3


def measure(case: Case, cache: Path, pools: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "embedpool", "prepare", case.model, "--precision", case.precision, "--cache", str(cache)]
    subprocess.run(command, check=True, capture_output=True)
    one_start(case, cache)
    starts = [one_start(case, cache) for _ in range(pools)]
    totals = [sum(steps.values()) for steps, _ in starts]
    ratios = [ms[0] / ms[-1] for _, ms in starts]
    return {
        "start_s": round(median(totals), 3),
        "start_s_of_each_pool": [round(total, 3) for total in totals],
        "steps_s": {name: round(median([steps[name] for steps, _ in starts]), 3) for name in STEPS},
        "first_to_tenth": round(median(ratios), 2),
        "first_to_tenth_of_each_pool": [round(ratio, 2) for ratio in ratios],
        "request_ms": [round(median([ms[i] for _, ms in starts]), 2) for i in range(REQUESTS)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=POOLS)
    parser.add_argument("--gemma", help="a ready directory of EmbeddingGemma's shape; made if not given")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="embedpool-bench-"))
    try:
        gemma = given.gemma or str(embeddinggemma.directory(place / "embeddinggemma"))
        cases = (Case("MiniLM", "minilm", "auto"), Case("EmbeddingGemma-300M's shape, fp32", gemma, "fp32"))
        found = {case.label: measure(case, place / "cache", given.pools) for case in cases}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    goals = {f"{label}: start <= {GOAL_S:g} s": one["start_s"] <= GOAL_S for label, one in found.items()}
    goals |= {f"{label}: first to tenth <= {GOAL_RATIO:g}": one["first_to_tenth"] <= GOAL_RATIO for label, one in found.items()}
    write("startup", (__doc__ or "").strip(), {"pools": given.pools, "models": found, "goals": goals})


if __name__ == "__main__":
    main()
