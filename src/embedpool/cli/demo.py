"""`embedpool demo`: a private pool, a few thousand real texts, five questions, and what it cost."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedpool.docstrings import Doc, docstrings
from embedpool.memory import pss_bytes
from embedpool.pool import Pool

QUESTIONS = (
    "How do I copy a whole directory with everything in it?",
    "start another program and wait until it has finished",
    "What is the average of a list of numbers?",
    "turn a text like 2026-11-24 into a date",
    "a temporary directory that is deleted when I am done with it",
)
LATENCY_QUERIES = 100


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--texts", type=int, default=4000, metavar="N", help="how many docstrings (default 4000)")
    parser.add_argument("--model", default="minilm", help="the model to use (default minilm)")
    parser.add_argument("--workers", default="auto", help="worker processes (default auto)")


def run(arguments: argparse.Namespace) -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    docs = docstrings(arguments.texts)
    console.print(f"[bold]{len(docs)}[/] docstrings of Python {sys.version.split()[0]}'s standard library")
    began = time.perf_counter()
    with Pool(arguments.model, workers=arguments.workers) as pool:
        start_s = time.perf_counter() - began
        before = json.loads(pool.status())
        began = time.perf_counter()
        vectors = pool.embed_documents([doc.text for doc in docs], progress=True)
        bulk_s = time.perf_counter() - began
        status = json.loads(pool.status())
        _answer(console, pool, docs, vectors)
        latencies = _latencies(pool)
        tokens = status["counters"]["tokens"] - before["counters"]["tokens"]
        pids = {pool.pid, *_router_pids(pool.pid), *(w["pid"] for w in status["workers"])}
        _table(console, status, _Run(start_s, len(docs), tokens, bulk_s, latencies, sum(map(pss_bytes, pids))))
    return 0


@dataclass(frozen=True, slots=True)
class _Run:
    start_s: float
    texts: int
    tokens: int
    bulk_s: float
    latencies_ms: Sequence[float]
    pss: int


def _router_pids(supervisor: int) -> list[int]:
    """The supervisor's children, of which the router is one (proc(5), /proc/PID/task/TID/children)."""
    try:
        return [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]
    except OSError:
        return []


def _answer(console: Console, pool: Pool, docs: Sequence[Doc], vectors: Any) -> None:
    for question in QUESTIONS:
        scores = vectors @ pool.embed_query(question)
        console.print(f"\n[bold cyan]{question}[/]")
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
        table.add_column(justify="right", style="dim", width=6)
        table.add_column(style="bold", no_wrap=True, overflow="ellipsis", width=34)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for i in np.argsort(-scores)[:3]:
            table.add_row(f"{scores[i]:.2f}", docs[i].name, escape(docs[i].summary))
        console.print(table)


def _latencies(pool: Pool) -> list[float]:
    found = []
    for i in range(LATENCY_QUERIES):
        question = QUESTIONS[i % len(QUESTIONS)]
        began = time.perf_counter()
        pool.embed_query(question)
        found.append((time.perf_counter() - began) * 1e3)
    return found


def _table(console: Console, status: dict[str, Any], run: _Run) -> None:
    workers = status["workers"]
    cores = ", ".join("+".join(map(str, w["cores"])) or "any" for w in workers)
    p50, p95 = np.percentile(run.latencies_ms, (50, 95))
    rows = (
        ("model", f"{status['model']['name']}, {status['model']['dim']} dimensions"),
        ("workers", f"{len(workers)}, on core{'s' * (len(workers) != 1)} {cores}"),
        ("start to first answer", f"{run.start_s:.1f} s"),
        ("bulk", f"{run.texts / run.bulk_s:,.0f} texts/s, {run.tokens / run.bulk_s:,.0f} tokens/s"),
        ("one query", f"p50 {p50:.1f} ms, p95 {p95:.1f} ms"),
        ("memory (PSS, whole pool)", f"{run.pss / 1e6:,.0f} MB"),
    )
    table = Table(title="what it took", title_justify="left", show_header=False, title_style="bold")
    for name, value in rows:
        table.add_row(name, value)
    console.print()
    console.print(table)
