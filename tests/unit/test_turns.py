"""A bulk job gives way to queries, and still ends. Time is the encoder's: it says how long a run is expected to take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from embedpool import protocol as wire
from embedpool.models.encoding import Interrupted
from embedpool.worker.inbox import worth_interrupting
from embedpool.worker.turns import MOST_GIVEN, Turns


class World:
    """An inbox and an encoder. `arriving` lists, per run of the encoder, how many queries come in the middle of it."""

    def __init__(self, arriving: Sequence[int], waiting: int = 0) -> None:
        self.arriving = list(arriving)
        self.waiting = waiting
        self.log: list[str] = []
        self._watched = False

    def urgent(self) -> wire.Job | None:
        if not self.waiting:
            return None
        self.waiting -= 1
        return wire.Job(len(self.log), (), True)

    @contextmanager
    def watching(self, expected_s: float) -> Iterator[None]:
        assert expected_s > 0
        self._watched = True
        try:
            yield
        finally:
            self._watched = False

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Any:  # noqa: ARG002 - the protocol has it
        arrived = self.arriving.pop(0) if self.arriving else 0
        self.waiting += arrived
        if arrived and self._watched:
            self.log.append("interrupted")
            raise Interrupted
        self.log.append("bulk")
        return np.zeros((len(rows), 4), np.float32)

    def tokens(self, texts: Sequence[str], cut: str) -> Any:
        raise ValueError("no text", texts, cut)

    def do(self, job: wire.Job) -> None:
        assert job.urgent
        self.log.append("query")


def turns(world: World, token_s: float = 0.001) -> Turns:
    made = Turns(world, world, world.do)  # type: ignore[arg-type]
    made._token_s, made._weight = token_s, 1e9
    return made


def test_queries_that_have_arrived_run_before_the_next_micro_batch() -> None:
    world = World([], waiting=2)
    assert turns(world).run([[1] * 16], 16).shape == (1, 4)
    assert world.log == ["query", "query", "bulk"]


def test_a_run_is_interrupted_for_a_query_and_made_again_behind_it() -> None:
    world = World([1, 0])
    turns(world).run([[1] * 16], 16)
    assert world.log == ["interrupted", "query", "bulk"]


def test_tokenising_is_timed_even_where_it_fails() -> None:
    made = turns(World([]))
    for _ in range(2):
        before = made.spent.tokenize_s
        with pytest.raises(ValueError, match="no text"):
            made.tokens(["x"], "right")
        assert made.spent.tokenize_s > before


def test_a_short_run_is_not_watched() -> None:
    world = World([1, 0])
    turns(world, token_s=0.0001).run([[1] * 16], 16)
    assert world.log == ["bulk"]


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_micro_batch_ends_however_many_queries_there_are(at_once: int) -> None:
    world = World([at_once] * 1000, waiting=at_once)
    made = turns(world)
    for _ in range(20):
        before = len(world.log)
        made.run([[1] * 16], 16)
        done = world.log[before:]
        assert done[-1] == "bulk"
        assert done.count("query") <= MOST_GIVEN
        assert done.count("interrupted") <= MOST_GIVEN


def test_what_a_run_takes_is_learned_from_runs() -> None:
    world = World([])
    made = Turns(world, world, world.do)  # type: ignore[arg-type]
    for _ in range(3):
        made.run([[1] * 16], 16)
    assert 0.0 < made._token_s < 0.001


@pytest.mark.parametrize(
    ("done_ms", "left_ms", "worth"),
    [(1, 11, True), (5, 7, True), (7, 5, False), (1900, 100, True), (100, 9, False), (0.1, 1.9, False), (30, 15, True)],
)
def test_a_run_is_interrupted_if_that_costs_less_than_the_wait_and_always_if_the_wait_is_long(
    done_ms: float, left_ms: float, worth: bool
) -> None:
    assert worth_interrupting(done_ms / 1e3, left_ms / 1e3) is worth
