"""Equal texts are computed once, whoever asks for them and when, as long as one of them waits or runs."""

from __future__ import annotations

from typing import Any

import pytest

from embedpool.protocol import Failure
from embedpool.router.core import MAX_JOB_ROWS, Core
from embedpool.router.events import CancelAsked, Closed, SendJob, Tick
from embedpool.router.suspects import DEATHS
from tests.unit.transcript import ALICE, BOB, ask, core, finish, joined, lost, play, replies, sent, words


def busy(**rules: Any) -> Core:
    """A core whose one worker has both places of each class taken by long jobs."""
    made = core(slice_ms=5, **rules)
    play(made, joined(1), 0.0)
    play(made, ask(900, ["a" * 100], session=BOB), 0.0)
    play(made, ask(901, ["b" * 100], session=BOB), 0.0)
    play(made, ask(902, words(2, 100, "bulk "), session=BOB, priority="bulk"), 0.0)
    return made


def jobs(actions: list[object]) -> list[Any]:
    return [action.job for action in actions if isinstance(action, SendJob)]


def test_equal_texts_that_wait_share_a_job_and_only_one_of_them_costs() -> None:
    made = busy()
    for id in (1, 2, 3):
        play(made, ask(id, ["x" * 26], session=ALICE if id % 2 else BOB), 0.1)
    assert made.queue.rows == 3
    assert made.queue.units == {True: 50, False: 0}, "one row of 26 characters"
    (job,) = jobs(play(made, finish(made, 1), 0.2))
    assert [part.texts for part in job.parts] == [("x" * 26,)] * 3
    assert made.workers[1].jobs[1].units == 50
    play(made, finish(made, 1), 0.3)
    assert sorted(replies(play(made, finish(made, 1), 0.4))) == [
        (ALICE, 1, "vectors"),
        (ALICE, 3, "vectors"),
        (BOB, 2, "vectors"),
    ]
    assert made.counters.alike == 2
    assert made.queue.rows == made.queue.nbytes == 0


def test_a_text_that_is_being_computed_is_not_computed_again_for_those_who_ask_meanwhile() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, joined(2), 0.0)
    (first,) = jobs(play(made, ask(1, ["same"]), 0.1))
    assert jobs(play(made, ask(2, ["same"], session=BOB), 0.1)) == [], "the other worker is idle, but it would compute it again"
    actions = play(made, finish(made, 1), 0.2)
    (again,) = jobs(actions)
    assert again.repeats == first.id, "the worker has the vector"
    assert [a.worker for a in actions if isinstance(a, SendJob)] == [1]
    assert jobs(play(made, ask(3, ["same"]), 0.2)) == [], "who asks now goes along too"
    (third,) = jobs(play(made, finish(made, 1), 0.3))
    assert third.repeats == again.id
    assert replies(play(made, finish(made, 1), 0.4)) == [(ALICE, 3, "vectors")]
    (fresh,) = jobs(play(made, ask(4, ["same"]), 0.5))
    assert not fresh.repeats, "nobody was computing it any more"


def test_one_request_with_the_same_text_many_times_costs_one_row() -> None:
    made = core(slice_ms=5)
    play(made, joined(1), 0.0)
    first = play(made, ask(1, ["x" * 26] * 1000), 0.1)
    assert [len(part.rows) for job in jobs(first) for part in job.parts] == [1, MAX_JOB_ROWS]
    answers = []
    for step in range(4):
        answers += replies(play(made, finish(made, 1), 0.2 + step))
    assert answers == [(ALICE, 1, "vectors")]
    assert made.counters.alike == 999


@pytest.mark.parametrize(
    "other",
    [{"prompt": "p "}, {"prompt_name": "query"}, {"truncate": False}, {"titles": ("t",), "prompt_name": "document"}],
    ids=str,
)
def test_what_the_model_would_read_differently_is_computed_of_its_own(other: dict[str, Any]) -> None:
    made = busy()
    play(made, ask(1, ["text"]), 0.1)
    play(made, ask(2, ["text"], session=BOB, **other), 0.1)
    assert sum(request.following for request in made.queue.held) == 0


@pytest.mark.parametrize("other", [{"dim": 2}, {"dtype": "int8"}, {"normalize": False}, {"offset": None}], ids=str)
def test_how_a_vector_is_delivered_does_not_matter(other: dict[str, Any]) -> None:
    made = busy()
    play(made, ask(1, ["text"]), 0.1)
    play(made, ask(2, ["text"], session=BOB, **other), 0.1)
    assert sum(request.following for request in made.queue.held) == 1


def test_a_query_does_not_wait_for_the_same_text_in_bulk_work_but_bulk_work_waits_for_the_query() -> None:
    made = busy()
    play(made, ask(1, ["same"], priority="bulk"), 0.1)
    play(made, ask(2, ["same"], session=BOB), 0.1)
    play(made, ask(3, ["same"], priority="bulk"), 0.1)
    held = {request.ask.id: request for request in made.queue.held}
    assert [held[id].following for id in (1, 2, 3)] == [0, 0, 1]
    (job,) = jobs(play(made, finish(made, 1), 0.2))
    assert job.urgent
    assert [part.rows for part in job.parts] == [(0,), (0,)]
    assert 1 in made.sessions[ALICE].open and 1 in {request.ask.id for request in made.queue.held}


@pytest.mark.parametrize("how", ["cancelled", "closed", "expired"])
def test_when_the_first_one_leaves_the_next_one_takes_its_place(how: str) -> None:
    made = busy()
    play(made, ask(1, ["same"], budget_ms=500), 0.1)
    play(made, ask(2, ["same"], session=BOB), 0.1)
    play(made, ask(3, ["same"], session=BOB), 0.1)
    event = {"cancelled": CancelAsked(ALICE, 1), "closed": Closed(ALICE), "expired": Tick()}[how]
    play(made, event, 0.7)
    assert made.queue.units == {True: 28, False: 0}, "one row of four characters"
    play(made, finish(made, 1), 0.8)
    play(made, finish(made, 1), 0.8)
    assert sorted(replies(play(made, finish(made, 1), 0.9))) == [(BOB, 2, "vectors"), (BOB, 3, "vectors")]


def test_one_that_follows_can_leave_too() -> None:
    made = busy()
    play(made, ask(1, ["same"]), 0.1)
    play(made, ask(2, ["same"], session=BOB), 0.1)
    assert replies(play(made, CancelAsked(BOB, 2), 0.2)) == [(BOB, 2, "cancelled")]
    assert {request.ask.id for request in made.queue.held} == {1}


def test_those_who_follow_count_as_waiting_and_so_their_number_is_bounded() -> None:
    made = busy(max_queue_rows=10)
    codes = [code for id in range(1, 20) for _, _, code in replies(play(made, ask(id, ["same"]), 0.1))]
    assert codes == ["overloaded"] * 14, "five wait: the other half of the room is for others"


def test_a_worker_that_dies_takes_no_answer_of_those_who_follow_along() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1, ["same"]), 0.1)
    play(made, ask(2, ["same"], session=BOB), 0.1)
    play(made, lost(made, 1), 0.2)
    play(made, joined(2), 0.3)
    assert replies(play(made, finish(made, 2), 0.4)) == [(ALICE, 1, "vectors")]
    play(made, lost(made, 2), 0.5)  # with the job that was to repeat the vector
    (job,) = jobs(play(made, joined(3), 0.6))
    assert not job.repeats, "the vector went with its worker"
    assert made.workers[3].jobs[0].units == 28
    assert replies(play(made, finish(made, 3), 0.7)) == [(BOB, 2, "vectors")]


def test_a_row_that_fails_fails_for_all_who_ask_for_it() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1, ["bad"]), 0.1)
    play(made, ask(2, ["bad", "good"], session=BOB), 0.1)
    failure = Failure(0, 0, "too_long", "too long")
    assert replies(play(made, finish(made, 1, [failure]), 0.2)) == [(ALICE, 1, "too_long")]
    assert replies(play(made, finish(made, 1), 0.3)) == [], "the good one"
    assert replies(play(made, finish(made, 1, [failure]), 0.4)) == [(BOB, 2, "too_long")]


def test_a_row_that_kills_is_refused_to_all_who_wait_for_it_and_kills_no_more_workers() -> None:
    made = core()
    play(made, joined(1), 0.0)
    play(made, ask(1, ["poison"]), 0.1)
    play(made, ask(2, ["poison"], session=BOB), 0.1)
    play(made, ask(3, ["poison"], session=BOB, priority="bulk"), 0.1)
    answers = []
    for worker in range(1, DEATHS + 1):
        answers += replies(play(made, lost(made, worker), 0.2 + worker))
        assert bool(sent(play(made, joined(worker + 1), 0.3 + worker))) == (worker < DEATHS)
    assert sorted(answers) == [(ALICE, 1, "poison_row"), (BOB, 2, "poison_row"), (BOB, 3, "poison_row")]


def test_a_request_that_only_follows_is_taken_in_however_late_its_own_computation_would_be() -> None:
    made = busy()
    play(made, ask(1, ["x" * 976]), 0.1)  # 100 ms
    play(made, ask(3, ["y" * 976]), 0.1)
    assert replies(play(made, ask(2, ["z" * 976], session=BOB, budget_ms=50), 0.1)) == [(BOB, 2, "overloaded")]
    assert replies(play(made, ask(4, ["x" * 976], session=BOB, budget_ms=50), 0.1)) == []
