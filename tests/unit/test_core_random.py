"""Random histories of the router core: arrivals, deaths, stalls, cancels, late answers, duplicates. Every invariant holds
after every step, and at the end every request has had exactly one answer.

A history that fails is made as short as it can be and printed as the lines of a transcript test, to be pasted into one.
EMBEDPOOL_HISTORIES sets how many are played. How they are made, and how to add a move: histories.py.
"""

from __future__ import annotations

import os

import pytest

from tests.unit.histories import choose
from tests.unit.minimal import failing, shortest

HISTORIES = int(os.environ.get("EMBEDPOOL_HISTORIES", "10000"))
BATCHES = 10


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_invariant_holds_after_every_step_of_random_histories(batch: int) -> None:
    for seed in range(batch * HISTORIES // BATCHES, (batch + 1) * HISTORIES // BATCHES):
        if failing(choose(seed)) is not None:
            pytest.fail(f"seed {seed}; the shortest history with its fault:\n{shortest(seed)}", pytrace=False)
