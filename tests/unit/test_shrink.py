"""What is printed of a history that fails is short, fails in the same way, and can be pasted into a test."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from embedpool.protocol import Done, Failure
from embedpool.router import events as ev
from embedpool.router.core import Core
from tests.unit import transcript
from tests.unit.histories import WEIGHTS, History, Move, Player, choose
from tests.unit.minimal import Failing, MakeCore, failing, shortest
from tests.unit.shrink import Shrinker
from tests.unit.transcript import core


def halves(n: int) -> Iterable[int]:
    return dict.fromkeys((0, n // 2)) if n else ()


def smallest(items: list[int], fails: Callable[[list[int]], bool], replays: int = 1000) -> list[int]:
    return Shrinker(fails, halves, replays).smallest(items)


@pytest.mark.parametrize(
    "fails",
    [
        lambda items: {30, 70} <= set(items),
        lambda items: 30 in items and 70 in items[items.index(30) :],
        lambda items: any(n > 50 for n in items),
        lambda items: len(items) >= 3,
        lambda items: sum(items) % 7 == 3 and len(items) > 1,
        lambda _: True,
    ],
    ids=["two items", "two in order", "one detail", "so many", "by chance", "whatever there is"],
)
def test_without_any_item_that_is_left_or_with_a_simpler_one_it_would_not_fail(fails: Callable[[list[int]], bool]) -> None:
    items = list(range(1, 100))
    random.Random(1).shuffle(items)
    items += [30, 70]
    assert fails(items)
    found = smallest(items, fails)
    assert fails(found)
    for i, item in enumerate(found):
        assert not fails(found[:i] + found[i + 1 :])
        assert not any(fails([*found[:i], simple, *found[i + 1 :]]) for simple in halves(item))


def test_the_replays_are_bounded_and_what_was_reached_by_then_is_given() -> None:
    played: list[list[int]] = []

    def fails(items: list[int]) -> bool:
        played.append(items)
        return 5 in items and 50 in items

    found = smallest(list(range(100)), fails, replays=12)
    assert len(played) == 12
    assert 2 < len(found) < 100
    assert {5, 50} <= set(found)


# ── histories ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_history_is_a_function_of_its_seed_and_has_moves_of_every_kind() -> None:
    assert choose(7) == choose(7) != choose(8)
    assert {move.kind for seed in range(50) for move in choose(seed).moves} == set(WEIGHTS)


def test_a_move_that_does_not_apply_does_nothing() -> None:
    player = Player(core())
    for kind in ("finish", "die", "die_again", "late_answer", "reap"):
        player.move(Move(kind, b"\1\1\1\1"))
    assert player.log == []


def test_moves_that_are_left_out_leave_the_others_what_they_were() -> None:
    moves = [move for move in choose(3).moves if move.kind in ("arrive", "crowd", "join", "open")]
    texts = []
    for some in (moves, [move for move in moves if move.kind != "join"]):
        player = Player(core(max_queue_rows=1000))
        for move in some:
            player.move(move)
        texts.append([event.ask.texts for event, _ in player.log if isinstance(event, ev.Asked)])
    assert texts[0] == texts[1] != []


class LosesARowWhenACancelComesAfterADeath(Core):
    dead = False

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        self.dead = self.dead or isinstance(event, ev.Lost)
        if self.dead and isinstance(event, ev.CancelAsked):
            for request in self.all_open():
                if request.waiting:
                    request.waiting.pop()
        return super().handle(event, now)


class AnswersTwice(Core):
    """What it answers after a death while it was busy."""

    dead = False

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        self.dead = self.dead or (isinstance(event, ev.Lost) and event.begun > 0)
        actions = super().handle(event, now)
        return actions + [action for action in actions if self.dead and isinstance(action, ev.Reply)]


class NeverAnswersACancel(Core):
    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        actions = super().handle(event, now)
        return [a for a in actions if not (isinstance(a, ev.Reply) and "cancelled" in repr(a.message))]


class PutsARowAtAnothersPlace(Core):
    """Of the rows that a worker returns inline, if there are many."""

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        if isinstance(event, ev.Finished) and len(event.payload) > 64:
            event = ev.Finished(event.worker, event.done, event.payload[16:] + event.payload[:16])
        return super().handle(event, now)


class ForgetsACancelledRequestWhenAWorkerIsLost(Core):
    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        before = {id(request) for request in self.all_open() if request.refusal}
        actions = super().handle(event, now)
        lost = isinstance(event, ev.Lost) and bool(before)
        return [action for action in actions if not (lost and isinstance(action, ev.Reply))]


class Raises(Core):
    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        if isinstance(event, ev.Finished) and event.done.failures:
            raise KeyError(event.done.failures[0].row)
        return super().handle(event, now)


FAULTS = [  # and the moves of the shortest history that a person could find
    (LosesARowWhenACancelComesAfterADeath, 4),  # joined, lost, ask, cancel
    (AnswersTwice, 4),  # joined, ask, lost, cancel
    (NeverAnswersACancel, 2),  # ask, cancel
    (ForgetsACancelledRequestWhenAWorkerIsLost, 4),  # joined, ask, cancel, lost
    (PutsARowAtAnothersPlace, 2),  # joined (quick: five rows are one job), ask
    (Raises, 3),  # joined, ask, finished
]
MOST_DETAILS = 3  # that are not the simplest, in all
MOST_MORE = 4  # events, of workers that come and answer when the moves are over


def first_seed(fault: type[Core]) -> int:
    return next(seed for seed in range(500) if failing(choose(seed), made_as(fault)) is not None)


def made_as(fault: type[Core]) -> MakeCore:
    return lambda **rules: core(kind=fault, **rules)


@pytest.mark.parametrize(("fault", "moves"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_history_of_a_planted_fault_is_as_short_as_a_person_would_write_it(fault: type[Core], moves: int) -> None:
    seed = first_seed(fault)
    least = shortest(seed, made_as(fault))
    found = failing(choose(seed), made_as(fault))
    assert found is not None and least.place == found.place, "the same fault"
    assert len(least.history.moves) <= moves, str(least)
    assert len(least.player.log) <= moves + MOST_MORE
    assert sum(byte > 0 for move in least.history.moves for byte in move.draws) <= MOST_DETAILS
    for i in range(len(least.history.moves)):
        without = least.history.moves[:i] + least.history.moves[i + 1 :]
        other = failing(History(least.history.slice_ms, without), made_as(fault))
        assert other is None or other.place != least.place, "a move that is not needed"


def test_what_is_printed_is_the_body_of_a_test_that_fails_in_the_same_way() -> None:
    make = made_as(LosesARowWhenACancelComesAfterADeath)
    least = shortest(first_seed(LosesARowWhenACancelComesAfterADeath), make)
    names = {**vars(ev), **vars(transcript), "Done": Done, "Failure": Failure, "core": make}
    with pytest.raises(type(least.error)) as raised:
        exec(str(least), names)
    assert str(raised.value) == str(least.error)


def test_every_event_of_whole_histories_is_printed_as_it_was() -> None:
    for seed in range(100):
        player = Player(core(slice_ms=3))
        player.play(choose(seed).moves)
        printed = Failing(choose(seed), player, AssertionError()).lines()
        log: list[tuple[ev.Event, float]] = []
        names = {**vars(ev), **vars(transcript), "Done": Done, "Failure": Failure}
        names["play"] = lambda _, event, now, log=log: log.append((event, now))
        exec("\n".join(printed), names)
        assert log == player.log
