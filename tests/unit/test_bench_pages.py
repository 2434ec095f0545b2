"""What bench/ makes of its measurements: the texts it asks with, the parts it splits a time into, the words of its tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parent.parent.parent / "bench"
sys.path.insert(0, str(BENCH))  # scripts there import each other by their plain names

import delivery  # noqa: E402 - found by the path that is set above
import growth  # noqa: E402
import pairs  # noqa: E402
import quality_page  # noqa: E402
import render  # noqa: E402
from findings import result  # noqa: E402

# ── texts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("docstring", "query", "answer"),
    [
        ("Copy a file.\n\nIts mode is kept.", "Copy a file.", "Its mode is kept."),
        ("Copy a file. Its mode is kept.\n\nNot its owner.", "Copy a file.", "Its mode is kept.\n\nNot its owner."),
        ("Copy a\nfile over\nanother.\n\nMore.", "Copy a file over another.", "More."),
        ("Like os.path, e.g. for links.\n\nMore.", "Like os.path, e.g. for links.", "More."),
        ("No end\n\nMore.", "No end", "More."),
        ("Alone.", "Alone.", ""),
    ],
)
def test_a_docstring_is_its_first_sentence_and_the_rest(docstring: str, query: str, answer: str) -> None:
    assert pairs.split(docstring) == pairs.Pair(query, answer)


def test_what_has_no_one_answer_is_not_asked() -> None:
    rest = "and so on " * 10
    twice = [f"Same first sentence.\n\n{rest}{i}" for i in range(2)]
    alike = [f"Sentence number {i}.\n\n{rest}" for i in range(2)]
    short = ["A clear first sentence.\n\nToo short."]
    found = pairs.pairs([*twice, *alike, *short, f"Only one has this.\n\n{rest}only"], most=10)
    assert [pair.query for pair in found] == ["Only one has this."]


def test_the_length_of_an_answer_has_bounds() -> None:
    assert [pairs.Pair("", "x" * n).length for n in (160, 161, 480, 481)] == ["short", "medium", "medium", "long"]


# ── times ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_parts_of_a_call_add_up_to_it() -> None:
    """A call from 0 to 20 ms; jobs from 1 to 6 and from 8 to 18, of which the encoder took 3 and 7."""
    found = delivery.parts(0.0, 0.020, np.array([[0.001, 0.006, 0.003], [0.008, 0.018, 0.007]]))
    assert (found.whole, found.computing, found.writing) == (pytest.approx(20), pytest.approx(10), pytest.approx(5))
    assert (found.before_first, found.between, found.after_last) == (pytest.approx(1), pytest.approx(2), pytest.approx(2))
    assert found.computing + found.writing + found.waiting == pytest.approx(found.whole)


def test_growth_is_the_largest_cost_over_the_smallest_within_its_bounds() -> None:
    costs = {"1": 90.0, "100": 10.0, "1000": 12.0, "100000": 11.0}
    assert growth.growth(costs, 100, 100_000) == pytest.approx(1.2)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def difference(mean: float, low: float, high: float, noise: bool) -> dict[str, Any]:
    return {"mean": mean, "interval": [low, high], "within_noise": noise}


def test_a_difference_says_whether_it_is_one() -> None:
    assert quality_page.lost(difference(-0.009, -0.014, -0.003, noise=False)) == "−0.009 (−0.014 – −0.003)"
    assert quality_page.lost(difference(0.001, -0.003, 0.005, noise=True)) == "+0.001 (−0.003 – +0.005), within noise"
    assert quality_page.lost(difference(0.0, 0.0, 0.0, noise=True)) == "0"


def test_no_speed_of_smaller_weights_stands_without_their_quality() -> None:
    lines = render.models_table().splitlines()
    lossy = [label for label in result("models")["results"] if not label.endswith(("fp32", " f32"))]
    assert len(lossy) >= 5
    for label in lossy:
        (cells,) = [line.split(" | ") for line in lines if line.startswith(f"| {label} |")]
        quality = cells[-1].removesuffix(" |")
        if "'s shape" in label:
            assert quality == quality_page.unknown_of(label) == "not known: random weights", label
        else:
            assert 0.0 < float(quality.partition(",")[0]) < 1.0, label
    numbers = render.table()
    assert numbers.index("bulk, MiniLM") < numbers.index("quality of those weights") < numbers.index("beside 2 bulk clients")
