"""Where jobs take microseconds: who gets them, and how long they may wait for him."""

from __future__ import annotations

import pytest

from embedpool.router.core import Core
from embedpool.router.events import CancelAsked, Tick
from embedpool.router.roster import DEPTH
from embedpool.router.warm import HELD_S, LITTLE_MS
from tests.unit.transcript import ALICE, ask, core, finish, joined, lost, play, sent

QUICK = 1e-4  # milliseconds per unit: a text of four characters takes 3 us
AT = 0.1


def quick(workers: int = 3, unit_ms: float = QUICK) -> Core:
    made = core()
    for number in range(1, workers + 1):
        play(made, joined(number, unit_ms), 0.0)
    return made


def asked(made: Core, *ids: int, at: float = AT) -> list[tuple[int, list[tuple[int, ...]]]]:
    return [job for id in ids for job in sent(play(made, ask(id), at))]


def held(made: Core) -> None:
    """One worker has as many jobs as it takes, and a request waits for it."""
    assert [worker for worker, _ in asked(made, *range(1, DEPTH + 2))] == [1] * DEPTH
    assert made.queue.rows == 1


def test_short_jobs_go_behind_the_one_that_runs_and_wake_nobody() -> None:
    assert [worker for worker, _ in asked(quick(), 1, 2)] == [1, 1]


def test_jobs_that_are_not_short_are_spread_as_ever() -> None:
    assert [worker for worker, _ in asked(quick(unit_ms=LITTLE_MS / 24), 1, 2, 3)] == [1, 2, 3]


def test_what_waited_goes_together_to_the_worker_that_answers() -> None:
    made = quick()
    held(made)
    assert asked(made, 4, 5) == []
    assert sent(play(made, finish(made, 1), AT + 1e-4)) == [(1, [(0,), (0,), (0,)])]


@pytest.mark.parametrize("late", [0.0, 1e-3])
def test_when_no_answer_comes_others_get_it_at_the_deadline_that_was_named(late: float) -> None:
    made = quick()
    held(made)
    assert made.next_deadline() == pytest.approx(AT + HELD_S)
    assert sent(play(made, Tick(), AT + HELD_S / 2)) == []
    assert [worker for worker, _ in sent(play(made, Tick(), AT + HELD_S + late))] == [2]


def test_more_requests_do_not_put_that_deadline_off() -> None:
    made = quick()
    held(made)
    assert asked(made, 4, at=AT + HELD_S / 2) == []
    assert made.next_deadline() == pytest.approx(AT + HELD_S)
    assert asked(made, 5, at=AT + HELD_S) == [(2, [(0,), (0,), (0,)])]


def test_as_soon_as_it_is_worth_waking_somebody_he_is_woken() -> None:
    made = quick()
    held(made)
    assert made.queue.rows == 1
    woken = []
    while not woken:
        assert made.cost.ms(made.queue.units[True]) < LITTLE_MS
        woken = asked(made, made.queue.rows + DEPTH + 1)
    assert [worker for worker, _ in woken] == [2]
    assert len(woken[0][1]) > 10


def test_a_worker_that_dies_leaves_what_waits_for_it_to_others_at_once() -> None:
    made = quick()
    held(made)
    assert [worker for worker, _ in sent(play(made, lost(made, 1), AT))][:1] == [2]
    assert not made.queue.rows or made.load.jobs


def test_one_that_has_run_long_is_not_waited_for() -> None:
    made = quick()
    asked(made, 1)
    assert [worker for worker, _ in asked(made, 2, at=AT + HELD_S)] == [2]


def test_what_is_given_up_while_it_waits_leaves_no_deadline_behind() -> None:
    made = quick()
    held(made)
    play(made, CancelAsked(ALICE, DEPTH + 1), AT)
    deadline = made.next_deadline()
    assert made.queue.rows == 0
    assert deadline is not None and deadline > AT + HELD_S
