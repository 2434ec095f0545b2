"""The texts that are embedded: docstrings of the standard library, or a file's lines. Read once; loads get them as files."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from embedpool.docstrings import docstrings
from embedpool.errors import ConfigError

SHORT_WORDS = 8  # what people type into a search box is shorter still
EVERY = 1 << 20  # more docstrings than there are


@dataclass(frozen=True, slots=True)
class Texts:
    """No text is twice in `queries`, or twice in `documents`. `of` says where they are from, and how long they are."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    of: str


def read_texts(lengths: str, seed: int) -> Texts:
    """`real`: summaries of docstrings as queries, whole docstrings as documents; `short`: the first words of summaries as both;
    otherwise the lines of the file of that name as both. In an order that the seed decides. Raises ConfigError."""
    if lengths in ("real", "short"):
        docs = docstrings(EVERY)
        whole = {doc.text for doc in docs}
        summaries = [doc.summary for doc in docs if doc.summary and doc.summary not in whole]
        if lengths == "short":
            summaries = [" ".join(summary.split()[:SHORT_WORDS]) for summary in summaries]
        found = summaries, [*whole] if lengths == "real" else summaries
        what = "docstrings of the standard library" + (", their first words" if lengths == "short" else "")
    else:
        found, what = (_lines(lengths),) * 2, f"lines of {Path(lengths).name}"
    queries, documents = (_shuffled(texts, seed) for texts in found)
    sizes = f"queries {_mean_chars(queries):.0f} and documents {_mean_chars(documents):.0f} characters on average"
    return Texts(queries, documents, f"{what}: {sizes}")


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--lengths is real, short or a file of texts: {path} cannot be read: {error}") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"--lengths: there is no text in {path}")
    return found


def _shuffled(texts: list[str], seed: int) -> tuple[str, ...]:
    found = sorted(set(texts))
    random.Random(seed).shuffle(found)
    return tuple(found)


def _mean_chars(texts: tuple[str, ...]) -> float:
    return sum(map(len, texts)) / len(texts)
