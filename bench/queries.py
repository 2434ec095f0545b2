"""Queries as they come from many independent users, at the rates that the targets name: how long each takes.

Single texts arrive at random (Poisson), whether those before them are answered or not; each is timed from the instant at which
it was due to its vector's being in its caller's hands. Texts are first sentences of docstrings, all different. MiniLM: the
weights of its package (8 bits, computed in fp32), beside two clients with bulk work (whole docstrings, 64 in a request).
EmbeddingGemma's shape: random weights, in q8, nothing beside. Two workers; loads are processes of their own on the same cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import median, wait_for_workers, write
from embedpool import Pool
from embedpool.bench.measure import measure
from embedpool.bench.results import Run
from embedpool.bench.texts import Texts, read_texts
from embedpool.bench.workload import Kind, Workload

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from tests.fixtures import embeddinggemma  # noqa: E402 - found by the path that is set above

PERCENTILES = ("p50", "p95", "p99")
WORKERS = 2
PREPARE_S = 300.0


@dataclass(frozen=True)
class Case:
    """`goal_ms` by percentile."""

    label: str
    model: str
    precision: str
    kind: Kind
    per_s: float
    goal_ms: dict[str, float]


def asked(case: Case, cache: Path, texts: Texts, seconds: float, repeats: int) -> dict[str, Any]:
    workload = Workload(kind=case.kind, rate=case.per_s, seconds=seconds)
    with Pool(case.model, precision=case.precision, workers=WORKERS, cache=str(cache), start_timeout_s=PREPARE_S) as pool:
        wait_for_workers(pool, WORKERS)
        runs = [measure(pool, workload, texts, repeat, lambda _: None) for repeat in range(repeats)]
    each = [percentiles_ms(run) for run in runs]
    found = {name: median([repeat[name] for repeat in each]) for name in PERCENTILES}
    return {
        "per_s": case.per_s,
        "answered": sum(run.queries.latency.answered for run in runs if run.queries),
        "tokens_of_a_query": round(median([q.tokens_per_s / q.answered_per_s for run in runs if (q := run.queries)]), 1),
        "bulk_tokens_per_s": round(median([run.bulk.tokens_per_s if run.bulk else 0.0 for run in runs])),
        "ms": found,
        "ms_of_each_repeat": each,
        "goal_ms": case.goal_ms,
        "reached": all(found[name] <= goal for name, goal in case.goal_ms.items()),
        "doubts": sorted({doubt.said for run in runs for doubt in run.doubts}),
    }


def percentiles_ms(run: Run) -> dict[str, float]:
    """Raises RuntimeError where so many queries were refused that a percentile is one of them."""
    assert run.queries is not None
    latency = run.queries.latency
    found = {name: latency.percentiles_ms[name] for name in PERCENTILES}
    if None in found.values():
        raise RuntimeError(f"queries were refused: {latency.failed}")
    return {name: round(ms, 2) for name, ms in found.items() if ms is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gemma", help="a ready directory of EmbeddingGemma's shape; made if not given")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="embedpool-bench-"))
    try:
        gemma = given.gemma or str(embeddinggemma.directory(place / "embeddinggemma"))
        cases = (
            Case("MiniLM beside bulk work", "minilm", "auto", "mixed", 50, {"p50": 10, "p95": 20, "p99": 30}),
            Case("EmbeddingGemma-300M's shape, q8", gemma, "q8", "query", 20, {"p95": 60}),
        )
        texts = read_texts("real", seed=1)
        found = {case.label: asked(case, place / "cache", texts, given.seconds, given.repeats) for case in cases}
    finally:
        shutil.rmtree(place, ignore_errors=True)
    write("queries", (__doc__ or "").strip(), {"seconds": given.seconds, "workers": WORKERS, "models": found})


if __name__ == "__main__":
    main()
