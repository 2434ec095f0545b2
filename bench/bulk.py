"""Bulk throughput, and how close N workers come to N times one core.

loop: from the first text to the last vector of a plain loop in one process on one pinned core: the same session, tokeniser and
micro-batches as a worker, over all texts sorted by length, and no pool around it;
pool: from calling Client.embed_documents with the same texts to having the array.
Loop and pool take turns, so that a machine that gets slower in between slows both down.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

from common import median, write
from embedpool import Pool
from embedpool.cli.demo import docstrings
from embedpool.models.encoder import OnnxEncoder
from embedpool.models.resolve import Wanted, resolve
from embedpool.worker.batching import micro_batches


def loop(texts: list[str]) -> tuple[float, int]:
    """(seconds, tokens) of the plain loop, in this process."""
    encoder = OnnxEncoder(resolve(Wanted("minilm")))
    encoder.run(encoder.tokens(texts[:1], truncate=True), 256)
    began = time.perf_counter()
    rows = encoder.tokens(texts, truncate=True)
    out = np.empty((len(texts), encoder.spec.dim), np.float32)
    for batch in micro_batches([len(row) for row in rows]):
        vectors = encoder.run([rows[i] for i in batch.rows], batch.width)
        out[list(batch.rows)] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return time.perf_counter() - began, sum(map(len, rows))


def loop_in_child(count: int) -> tuple[float, int]:
    """The loop in a fresh process pinned to one core."""
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, __file__, "--texts", str(count), "--loop-on", str(core)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, tokens = json.loads(done.stdout)
    return seconds, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loop-on", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    texts = [doc.text for doc in docstrings(given.texts)]
    if given.loop_on is not None:
        os.sched_setaffinity(0, {given.loop_on})
        print(json.dumps(loop(texts)))
        return
    loops, pools, tokens = [], [], 0
    for _ in range(given.repeats):
        seconds, tokens = loop_in_child(len(texts))
        loops.append(tokens / seconds)
        with Pool("minilm", workers=given.workers) as pool:
            pool.embed_documents(texts[:50])
            began = time.perf_counter()
            pool.embed_documents(texts)
            pools.append(tokens / (time.perf_counter() - began))
    ratios = [many / one for many, one in zip(pools, loops, strict=True)]
    write(
        "bulk",
        " ".join((__doc__ or "").split()),
        {
            "model": "all-MiniLM-L6-v2 (int8 weights, fp32 compute)",
            "texts": len(texts),
            "tokens": tokens,
            "workers": given.workers,
            "loop_tokens_per_s": round(median(loops)),
            "pool_tokens_per_s": round(median(pools)),
            "ratio": round(median(ratios), 3),
            "ratio_of_each_repeat": [round(ratio, 3) for ratio in ratios],
        },
    )


if __name__ == "__main__":
    main()
