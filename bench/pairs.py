"""Real texts with known answers: the first sentence of a docstring asks for the rest of it. Pure, but for reading sources."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from embedpool.cli.demo import docstrings

Length = Literal["short", "medium", "long"]
LENGTHS: tuple[Length, ...] = ("short", "medium", "long")
SHORT_CHARS, MEDIUM_CHARS = 160, 480  # of the longest text that is short, and medium: about 40 and 120 tokens
QUERY_CHARS = (15, 300)  # shorter says nothing; longer is no sentence
LEAST_ANSWER_CHARS = 40
# It ends where a new sentence begins: the point in "e.g. this" and in "os.path" ends none.
FIRST_SENTENCE = re.compile(r"(.+?[.!?])(?=\s+[A-Z\"'`(*]|$)")


@dataclass(frozen=True)
class Pair:
    query: str
    answer: str

    @property
    def length(self) -> Length:
        n = len(self.answer)
        return "short" if n <= SHORT_CHARS else "medium" if n <= MEDIUM_CHARS else "long"


def split(text: str) -> Pair:
    """The first sentence, on one line, and all that comes after it; without an end, the first paragraph is the sentence."""
    paragraph, _, rest = text.partition("\n\n")
    line = " ".join(paragraph.split())
    found = FIRST_SENTENCE.match(line)
    query = found.group(1) if found else line
    return Pair(query, f"{line[len(query) :].strip()}\n\n{rest.strip()}".strip())


def pairs(texts: Sequence[str], most: int) -> list[Pair]:
    """At most so many, spread evenly. A sentence that begins two docstrings, or a rest that two have, has no one answer and is
    left out, as is what is too short or too long to ask with."""
    found = [split(text) for text in texts]
    low, high = QUERY_CHARS
    fit = [pair for pair in found if low <= len(pair.query) <= high and len(pair.answer) >= LEAST_ANSWER_CHARS]
    queries, answers = Counter(pair.query for pair in fit), Counter(pair.answer for pair in fit)
    clear = [pair for pair in fit if queries[pair.query] == answers[pair.answer] == 1]
    step = max(len(clear) / most, 1.0)
    return [clear[int(i * step)] for i in range(min(most, len(clear)))]


def of_the_standard_library(most: int) -> list[Pair]:
    """Of the running Python's: the same for the same version."""
    return pairs([doc.text for doc in docstrings(1 << 20)], most)


def digest(found: Sequence[Pair]) -> str:
    """Which texts they were: numbers of two digests are of two tasks."""
    return hashlib.sha256("\0".join(f"{pair.query}\0{pair.answer}" for pair in found).encode()).hexdigest()[:16]
