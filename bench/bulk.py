"""Bulk throughput, and how close N workers come to N times one core.

plain: from the first text to the last vector of a loop in one process pinned to one core, one text after the other, the same
session and tokeniser as a worker and no pool around it;
best: the same loop with the texts sorted by exact length and in a worker's micro-batches, which no server can do for texts that
come one request after the other;
each: plain loops on as many cores as the pool has workers, at the same time, their rates added: what this machine can give;
pool: from calling Client.embed_documents with the same texts to having the array.
All take turns, so that a machine that gets slower in between slows them all down.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common import encoder_of, median, wait_for_workers, write
from embedpool import Pool
from embedpool.config import flag
from embedpool.docstrings import docstrings
from embedpool.worker.batching import micro_batches

LONGEST_S = 300.0  # of a loop


def loop(texts: list[str], best: bool, provider: dict[str, str], model: str = "minilm") -> tuple[float, int]:
    """(seconds, tokens) of a loop in this process."""
    encoder = encoder_of(model, **provider)
    spec = encoder.spec
    for text in texts[:50]:
        (row,) = encoder.tokens([text], "right")
        encoder.run([row], spec.width(len(row)))
    out = np.empty((len(texts), spec.dim), np.float32)
    began = time.perf_counter()
    tokens = 0
    if best:
        rows = encoder.tokens(texts, "right")
        for batch in micro_batches([spec.width(len(row)) for row in rows], tokens=spec.batch_tokens):
            vectors = encoder.run([rows[i] for i in batch.rows], batch.width)
            out[list(batch.rows)] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        tokens = sum(map(len, rows))
    else:
        for i, text in enumerate(texts):
            (row,) = encoder.tokens([text], "right")
            (vector,) = encoder.run([row], spec.width(len(row)))
            out[i] = vector / np.linalg.norm(vector)
            tokens += len(row)
    return time.perf_counter() - began, tokens


def loops(count: int, provider: dict[str, str], cores: int = 1, best: bool = False, *others: str) -> tuple[float, int]:
    """(tokens per second, tokens) of loops in fresh processes at the same time, each pinned to a core of its own.

    `others`: further arguments of this script (--model, --texts-in).
    """
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    flags = [f"{flag(name)}={value}" for name, value in provider.items()]
    command = [sys.executable, __file__, "--texts", str(count), *flags, *["--best"] * best, *others, "--loop-on"]
    running = [subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE, text=True) for core in chosen]
    try:
        found = [json.loads(process.communicate(timeout=LONGEST_S)[0]) for process in running]
    finally:
        for process in running:
            process.kill()  # nothing, if it has ended
            process.wait()
    return sum(tokens / seconds for seconds, tokens in found), found[0][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--provider-options", default="")
    parser.add_argument("--loop-on", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--best", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="minilm", help=argparse.SUPPRESS)  # of --loop-on, for bench/peers.py
    parser.add_argument("--texts-in", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    provider = {"provider": given.provider, "provider_options": given.provider_options}
    texts = json.loads(given.texts_in.read_text()) if given.texts_in else [doc.text for doc in docstrings(given.texts)]
    if given.loop_on is not None:
        os.sched_setaffinity(0, {given.loop_on})
        print(json.dumps(loop(texts, given.best, provider, given.model)))
        return
    rates: dict[str, list[float]] = {"plain": [], "best": [], "each": [], "pool": []}
    tokens = 0
    for _ in range(given.repeats):
        for name in ("plain", "best", "each"):
            rate, tokens = loops(len(texts), provider, given.workers if name == "each" else 1, name == "best")
            rates[name].append(rate)
        with Pool("minilm", workers=given.workers, **provider) as pool:
            pool.embed_documents(texts[:50])
            wait_for_workers(pool, given.workers)
            began = time.perf_counter()
            pool.embed_documents(texts)
            rates["pool"].append(tokens / (time.perf_counter() - began))
    ratios = {name: [a / b for a, b in zip(rates["pool"], rates[name], strict=True)] for name in ("plain", "best", "each")}
    write(
        "bulk" if given.provider == "cpu" else f"bulk_{given.provider}",
        " ".join((__doc__ or "").split()),
        {
            "model": "all-MiniLM-L6-v2 (int8 weights, fp32 compute)" if given.provider == "cpu" else "all-MiniLM-L6-v2",
            **(provider if given.provider != "cpu" else {}),
            "texts": len(texts),
            "tokens": tokens,
            "workers": given.workers,
            "tokens_per_s": {name: round(median(found)) for name, found in rates.items()},
            "ratio_to": {name: round(median(found), 3) for name, found in ratios.items()},
            "ratio_to_of_each_repeat": {name: [round(ratio, 3) for ratio in found] for name, found in ratios.items()},
        },
    )


if __name__ == "__main__":
    main()
