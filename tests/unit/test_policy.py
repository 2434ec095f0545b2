"""When a child is started again decides between a pool that heals itself and one that burns the machine, so the whole table
of waits is written down here, with the clock as an argument.
"""

from __future__ import annotations

import pytest

from embedpool.supervise.policy import FIRST_WAIT_S, LONGEST_ALONE_S, LONGEST_WAIT_S, SERVED_S, START_TRIES, Restarts


def _lives(restarts: Restarts, times: int, seconds: float = 0.0) -> list[float | None]:
    """The waits after `times` lives in a row that became ready and ended `seconds` later."""
    waits = []
    for life in range(times):
        restarts.ready(100.0 * life)
        waits.append(restarts.ended(100.0 * life + seconds))
    return waits


def test_the_first_restart_is_at_once() -> None:
    assert _lives(Restarts(), 1) == [0.0]


def test_the_first_restart_is_at_once_too_for_a_child_that_was_never_ready() -> None:
    assert Restarts().ended(0.0) == 0.0


def test_waits_double_up_to_the_cap_and_stay_there() -> None:
    waits = _lives(Restarts(), 12)
    assert waits[:4] == [0.0, FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S]
    assert waits[7] == pytest.approx(FIRST_WAIT_S * 2**6)
    assert waits[8:] == [LONGEST_WAIT_S] * 4


def test_a_healthy_run_clears_the_record() -> None:
    restarts = Restarts()
    assert _lives(restarts, 5)[-1] != 0.0
    assert _lives(restarts, 1, seconds=SERVED_S) == [0.0]
    assert _lives(restarts, 1) == [FIRST_WAIT_S]


def test_a_run_a_moment_short_of_healthy_clears_nothing() -> None:
    restarts = Restarts()
    assert _lives(restarts, 2, seconds=SERVED_S - 0.001) == [0.0, FIRST_WAIT_S]


def test_a_child_that_is_never_ready_is_given_up_after_its_tries() -> None:
    restarts = Restarts()
    waits = [restarts.ended(float(life)) for life in range(START_TRIES)]
    assert None not in waits[:-1]
    assert waits[-1] is None


def test_being_ready_once_gives_back_all_tries() -> None:
    restarts = Restarts()
    for _ in range(START_TRIES - 1):
        assert restarts.ended(0.0) is not None
    assert _lives(restarts, 1)[0] is not None
    for _ in range(START_TRIES - 1):
        assert restarts.ended(200.0) is not None


def test_a_child_that_is_ready_each_time_is_never_given_up() -> None:
    assert None not in _lives(Restarts(), 50)


def test_a_life_counts_as_ready_only_if_that_life_was_ready() -> None:
    restarts = Restarts()
    restarts.ready(0.0)
    assert restarts.ended(1.0) == 0.0
    assert restarts.ended(1.0 + SERVED_S) == FIRST_WAIT_S, "the ready of the life before must not make this one healthy"


def test_every_end_is_counted() -> None:
    restarts = Restarts()
    _lives(restarts, 3, seconds=SERVED_S)
    restarts.ended(0.0)
    assert restarts.total == 4


def test_a_child_that_ends_thousands_of_times_still_only_waits() -> None:
    assert _lives(Restarts(), 3000)[-1] == LONGEST_WAIT_S


def test_a_pool_without_any_other_worker_does_not_wait_long() -> None:
    restarts, waits = Restarts(), list[float | None]()
    for life in range(12):
        restarts.ready(100.0 * life)
        waits.append(restarts.ended(100.0 * life, alone=True))
    assert waits[-1] == LONGEST_ALONE_S


def test_workers_that_are_killed_every_few_seconds_are_back_at_once_each_time() -> None:
    assert _lives(Restarts(), 30, seconds=2.0) == [0.0] * 30
