"""The pool beside what people use now: the same texts, weights and cores, each peer in an environment and process of its own.

start: from starting the peer's process to its first answer, the model's files having been read before;
query: from calling the library (of a server: a client of it in another process) with one short text to having the vector, one
after the other; open: the same, from when it is due, 50 each second with MiniLM and 5 with EmbeddingGemma's shape (a Poisson
process); beside: the same while another client embeds documents as fast as it can;
bulk: from calling it with documents to having their vectors, as many as take about two seconds, with the best of the batch
sizes tried;
memory: the most PSS of all the peer's processes, without the client, while it embeds all documents;
cosine: to the vectors of sentence-transformers in PyTorch's fp32.

Peers take turns, each in a fresh process each time. "pinned loops": plain loops, one pinned to each core, over all texts
sorted by exact length in the best batches, their rates added; no server can do that. The limit is what limit.py measures, in
the same run. A peer that does not start stands there with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import limit
from bulk import loops
from common import write
from embedpool.docstrings import docstrings
from peers_install import Files, Missing, default_place, files_of, python_of
from peers_results import Given, of_loops, row
from peers_table import OURS, REFERENCE, Peer, chosen
from peers_visit import Seen, Work, start_once, visit

LOOPS = "pinned loops, ONNX Runtime"
MOST_TOKENS = {"minilm": 256, "gemma": 512}  # longer texts are left out: peers cut at different lengths
TEXTS = {"minilm": 200, "gemma": 32}
FURTHER = 10  # times as many, for what is timed
PER_S = {"minilm": 50.0, "gemma": 5.0}  # a query of EmbeddingGemma's takes ten times as long
MOST_S = {"minilm": 480.0, "gemma": 360.0}  # of the whole run
LABELS = {"minilm": "all-MiniLM-L6-v2, fp32 weights", "gemma": "EmbeddingGemma-300M's shape, random weights"}


@dataclass(frozen=True)
class Texts:
    """With how many tokens each has."""

    documents: list[str]
    further: list[str]
    queries: list[str]
    document_tokens: list[int]
    further_tokens: list[int]
    query_tokens: list[int]


def texts_of(files: Files, count: int) -> Texts:
    """Documents, others of their kind, and short queries."""
    from embedpool.models.resolve import Wanted, resolve
    from embedpool.models.tokenizer import Tokenizer

    source = resolve(Wanted(files.model))
    tokenizer = Tokenizer(source.tokenizer, source.max_tokens, lowercase=source.lowercase)

    def lengths(texts: Sequence[str]) -> list[int]:
        return [len(row) for row in tokenizer.tokens(texts, "")]

    every = docstrings(count * (1 + FURTHER))
    fits = [length <= MOST_TOKENS[files.name] for length in lengths([doc.text for doc in every])]
    docs = [doc for doc, keep in zip(every, fits, strict=True) if keep]
    documents, further = [doc.text for doc in docs[:count]], [doc.text for doc in docs[count:]]
    queries = [doc.summary for doc in docs[:count]]
    return Texts(documents, further, queries, lengths(documents), lengths(further), lengths(queries))


class Tour:
    """The visits of a run, and what became of each peer."""

    def __init__(self, peers: tuple[Peer, ...], files: Files, work: Work, venvs: Path) -> None:
        self.peers, self._files, self._work, self._venvs = peers, files, work, venvs
        self.seen: dict[str, list[Seen]] = {peer.name: [] for peer in peers}
        self.failed: dict[str, str] = {}
        self.loops: list[float] = []

    def install(self) -> None:
        """What has to be installed or prepared is, before time is taken."""
        with tempfile.TemporaryDirectory(prefix="embedpool-bench-") as place:
            for peer in self.peers:
                try:
                    python = python_of(self._venvs, peer.env)
                    if peer.env == OURS:
                        start_once(python, peer, self._order(), Path(place))
                except Missing as error:
                    self.failed[peer.name] = str(error)

    def _order(self) -> dict[str, Any]:
        return self._files.order() | {"cores": self._work.cores}

    def repeat(self, number: int, place: Path) -> None:
        """Every peer once; one that failed is not tried again."""
        for peer in self.peers:
            if peer.name not in self.failed:
                began = time.monotonic()
                try:
                    self.seen[peer.name].append(self._visit(peer, number, place))
                    last = self.seen[peer.name][-1]
                    what = f"{last.bulk_texts / last.bulk_s:.1f} texts/s"
                except Missing as error:
                    what = self.failed[peer.name] = str(error)
                print(f"{number} {peer.name}: {what} ({time.monotonic() - began:.1f} s)", flush=True)
        self._loops(place)

    def _visit(self, peer: Peer, number: int, place: Path) -> Seen:
        for name, reason in self._files.missing:
            if name == peer.needs:
                raise Missing(reason)
        earlier = self.seen[peer.name]
        tried = earlier[0].tried if earlier else {}
        return visit(python_of(self._venvs, peer.env), peer, self._order(), self._work, tried, number, place)

    def _loops(self, place: Path) -> None:
        path = place / "texts.json"
        ours = [seen for peer in self.peers if peer.env == OURS for seen in self.seen[peer.name][:1]]
        path.write_text(json.dumps(self._work.further[: ours[0].bulk_texts] if ours else self._work.documents))
        try:
            self.loops.append(loops(0, {}, self._work.cores, True, "--model", self._files.model, "--texts-in", str(path))[0])
        except (subprocess.TimeoutExpired, ValueError) as error:  # it said nothing that is JSON
            self.failed[LOOPS] = f"{type(error).__name__}: {error}"

    def reference(self) -> np.ndarray | None:
        return self.seen[REFERENCE][0].vectors if self.seen.get(REFERENCE) else None


def measure(model: str, given: argparse.Namespace) -> dict[str, Any]:
    peers = chosen(model, tuple(given.only))
    files = files_of(model, given.venvs, {peer.env for peer in peers})
    texts = texts_of(files, TEXTS[model] // (4 if given.quick else 1))
    seconds = (0.3, 1.0) if given.quick else (1.0, 2.5)
    work = Work(texts.documents, texts.further, texts.queries, given.cores, *seconds, PER_S[model])
    tour = Tour(peers, files, work, given.venvs)
    tour.install()
    began = time.monotonic()
    most = limit.machine(given.venvs, given.cores).all
    facts = Given(texts.document_tokens, texts.further_tokens, texts.query_tokens, limit.cost(files.built), most)
    repeats = 0
    with tempfile.TemporaryDirectory(prefix="embedpool-bench-") as place:
        for number in range(1 if given.quick else given.repeats):
            if number and (time.monotonic() - began) * (number + 1) / number > MOST_S[model]:
                break  # the next one would take too long; how many there were is in the results
            tour.repeat(number, Path(place))
            repeats = number + 1
    rows: dict[str, Any] = {
        peer.name: {"error": tour.failed[peer.name]}
        if peer.name in tour.failed
        else row(peer, tour.seen[peer.name], facts, tour.reference())
        for peer in peers
    }
    return {
        "model": LABELS[model],
        "texts": len(texts.documents),
        "tokens": sum(texts.document_tokens),
        "query_tokens_at_the_median": sorted(texts.query_tokens)[len(texts.query_tokens) // 2],
        "queries_per_s": work.per_s,
        "cores": given.cores,
        "repeats": repeats,
        "peers": rows | {LOOPS: {"error": tour.failed[LOOPS]} if LOOPS in tour.failed else of_loops(tour.loops, facts)},
        "limits": {precision: facts.limits(precision) for precision in limit.BYTES},
        "took_s": round(time.monotonic() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("minilm", "gemma"), help="one of the two; both if not given")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="peers whose name has one of these in it")
    parser.add_argument("--quick", action="store_true", help="one repeat of little: shows who starts, not who is fast")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--venvs", type=Path, default=default_place(), help="where the peers' environments are kept")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])  # and of every peer, which inherits it
    given.cores = len(os.sched_getaffinity(0))
    for model in [given.model] if given.model else ["minilm", "gemma"]:
        try:
            found = measure(model, given)
        except Missing as error:  # the weights themselves
            sys.exit(str(error))
        write("peers" if model == "minilm" else f"peers-{model}", " ".join((__doc__ or "").split()), found)


if __name__ == "__main__":
    main()
