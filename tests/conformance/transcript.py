"""Reads transcripts. Pure: text in, steps out.

    = a name, a sentence of what holds
    # a comment
    > {"kind": "ping", "id": 1}          sent: a message of one frame
    > {"kind": "bye"} + 00ff             with more frames, each in hexadecimal digits
    > hex c1 00                          a frame as it stands, in hexadecimal digits
    > hex                                an empty message
    < {"kind": "pong", "id": 1}          this comes, with at least these fields; lines of `<` that
                                         follow each other come in any order
    < {"kind": "vectors"} | 2 rows inline
                                         and so do its rows; see ROWS
    ! map                                something done, or looked at, beside the socket; see ACTIONS

A transcript ends with a ping of the player, whose answer must be the next message: nothing is said that is not written.

What is sent may hold {"many": [text, n]}, n times the text; {"long": n}, a text of n characters; {"words": n}, one of n words.
"$dim" stands for what the last `welcome` said of its model or limits, "$dim+1" for one more (for less: "$dim-1").
In what comes, "$any" is anything, "$int" an integer, "$text" a string that is not empty, "$is a b" one of these words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACTIONS = ("map", "unlock", "gone")  # of the player, each a method
HERE = Path(__file__).parent / "transcripts"
# Where the rows lie, of which type and dimension (without: float32, the model's own), and whether they are all the same.
ROWS = re.compile(
    r"(?P<rows>\d+) rows (?:inline|at (?P<at>\d+))(?: of (?P<dtype>\w+))?(?:, dim (?P<dim>\d+))?(?P<equal>, equal)?"
)


@dataclass(frozen=True, slots=True)
class Rows:
    """What must be found behind a `vectors`. `at` None: inline. `dim` 0: the model's own."""

    rows: int
    at: int | None
    dtype: str
    dim: int
    equal: bool


@dataclass(frozen=True, slots=True)
class Send:
    """`message` is a JSON value to be filled in, or the bytes of a frame."""

    line: int
    message: Any
    more: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    line: int
    pattern: dict[str, Any]
    rows: Rows | None = None


@dataclass(frozen=True, slots=True)
class Expect:
    """All of these, in any order."""

    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Do:
    line: int
    action: str


Step = Send | Expect | Do


@dataclass(frozen=True, slots=True)
class Transcript:
    name: str
    steps: tuple[Step, ...]


def transcripts(word: str = "") -> list[Transcript]:
    """All that are kept here, or those with the word in their name, in the order of their files."""
    found = [each for path in sorted(HERE.glob("*.txt")) for each in read(path.read_text(encoding="utf-8"))]
    return [each for each in found if word in each.name]


def read(text: str) -> list[Transcript]:
    """Raises ValueError naming the line that is none."""
    found: list[Transcript] = []
    for number, line in enumerate(text.splitlines(), 1):
        mark, _, rest = line.partition(" ")
        if mark == "=":
            found.append(Transcript(rest, ()))
        elif mark not in ("", "#"):
            try:
                step = _step(number, mark, rest)
                found[-1] = Transcript(found[-1].name, _with(found[-1].steps, step))
            except (ValueError, IndexError) as error:
                raise ValueError(f"line {number} is not one of a transcript: {line!r}") from error
    return found


def _step(number: int, mark: str, rest: str) -> Step:
    if mark == "!" and rest in ACTIONS:
        return Do(number, rest)
    if mark == "<":
        pattern, _, rows = rest.partition(" | ")
        return Expect((Answer(number, json.loads(pattern), _rows(rows) if rows else None),))
    if mark == ">" and rest.startswith("hex"):
        return Send(number, bytes.fromhex(rest[3:]))
    if mark == ">":
        message, end = json.JSONDecoder().raw_decode(rest)
        return Send(number, message, tuple(_frames(rest[end:])))
    raise ValueError(mark)


def _frames(rest: str) -> Iterator[bytes]:
    for digits in rest.split("+")[1:]:
        yield bytes.fromhex(digits)


def _rows(text: str) -> Rows:
    found = ROWS.fullmatch(text)
    if found is None:
        raise ValueError(text)
    at = int(found["at"]) if found["at"] else None
    return Rows(int(found["rows"]), at, found["dtype"] or "float32", int(found["dim"] or 0), bool(found["equal"]))


def _with(steps: tuple[Step, ...], step: Step) -> tuple[Step, ...]:
    """Answers that follow each other are one step."""
    if steps and isinstance(steps[-1], Expect) and isinstance(step, Expect):
        return (*steps[:-1], Expect(steps[-1].answers + step.answers))
    return (*steps, step)
