"""When a row is taken for the reason of its workers' ends, and when it is only unlucky."""

from __future__ import annotations

from embedpool.router.state import Job, Slice
from embedpool.router.suspects import DEATHS, MOST_DEATHS, UNREST_S, Suspects
from tests.unit.transcript import ALICE, BOB, ask, core, finish, joined, lost, play, replies


def job(id: int, rows: int, **fields: int) -> Job:
    made = core()
    play(made, ask(id, [f"{i}" for i in range(rows)]), 0.0)
    return Job(id, [Slice(made.sessions[ALICE].open[id], tuple(range(rows)))], True, **fields)


def test_a_single_row_is_condemned_by_two_deaths_where_nothing_else_dies() -> None:
    suspects, suspect = Suspects(), job(1, 1)
    assert [suspects.died_with(suspect, float(n)) for n in range(DEATHS)] == ["again", "poison"]


def test_several_rows_are_split_and_never_condemned_together() -> None:
    suspects, suspect = Suspects(), job(1, 4)
    assert [suspects.died_with(suspect, float(n)) for n in range(3)] == ["again", "split", "split"]


def test_where_workers_die_of_other_things_too_more_evidence_is_asked_for() -> None:
    suspects, suspect = Suspects(), job(1, 1)
    suspects.died_with(job(2, 1), 0.0)
    assert [suspects.died_with(suspect, 1.0 + n) for n in range(MOST_DEATHS)] == ["again"] * (MOST_DEATHS - 1) + ["poison"]


def test_the_deaths_that_led_to_a_row_do_not_speak_for_it() -> None:
    suspects, whole = Suspects(), job(1, 2)
    for n in range(2):
        suspects.died_with(whole, float(n))
    half = job(3, 1, deaths=1, lineage=1)
    assert suspects.died_with(half, 3.0) == "poison"


def test_unrest_is_over_after_a_while() -> None:
    suspects, suspect = Suspects(), job(1, 1)
    suspects.died_with(job(2, 1), 0.0)
    assert [suspects.died_with(suspect, UNREST_S + 1 + n) for n in range(DEATHS)] == ["again", "poison"]


def test_workers_that_are_killed_at_random_condemn_no_row() -> None:
    """A worker is killed in the middle of every tenth job, whatever it is: of 2,000 rows none is refused."""
    made, worker, answers = core(), 1, list[str]()
    play(made, joined(worker), 0.0)
    for n in range(2000):
        play(made, ask(n, [f"text {n}"], session=ALICE if n % 2 else BOB), n / 10)
        if n % 10 == 0:
            play(made, lost(made, worker), n / 10)
            worker += 1
            play(made, joined(worker), n / 10)
            if n % 100 == 50:  # and now and then the retry too
                play(made, lost(made, worker), n / 10)
                worker += 1
                play(made, joined(worker), n / 10)
        answers += [code for _, _, code in replies(play(made, finish(made, worker), n / 10))]
    assert answers == ["vectors"] * 2000
