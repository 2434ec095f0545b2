"""Semantic search over the lines of a file, with the pool of this machine or a private one.

    python examples/search.py FILE "a question" ["another" …]

Uses the running pool (`embedpool serve`) if there is one, else starts one of its own with the minilm weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from embedpool import Client, Pool
from embedpool.errors import NotRunning

MATCHES = 3


def connect() -> Client:
    """The machine's pool, or a private one."""
    client = Client(connect_timeout_s=0.5)
    try:
        client.status()
    except NotRunning:
        client.close()
        return Pool("minilm")
    return client


def main(file: str, *questions: str) -> None:
    lines = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    with connect() as pool:
        vectors = pool.embed_documents(lines, progress=sys.stderr.isatty())
        for question in questions:
            scores = vectors @ pool.embed_query(question)  # rows are of unit length: the product is the cosine
            print(question)
            for i in np.argsort(-scores)[:MATCHES]:
                print(f"  {scores[i]:.2f}  {lines[i]}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
