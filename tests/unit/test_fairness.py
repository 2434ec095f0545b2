"""Who waits how long for whom, over whole schedules in virtual time: each test states a bound and why it is that one.

The units are in milliseconds of one worker: a query takes OWN, a job of bulk work SLICE, a very long row LONG. What every
request pays besides is LINKS, and what may overtake it or be in hand already. simulation.Pool holds in all of them that no
worker stands idle while anything waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from embedpool.router.load import LONGER, QUIET_S
from embedpool.router.roster import DEPTH
from embedpool.worker import turns
from embedpool.worker.inbox import PATIENCE_S
from embedpool.worker.turns import MOST_GIVEN
from tests.unit.simulation import LINK_S, REAP_S, Client, Pool, Question, Run

OWN, SLICE, LONG = 3.2, 20.0, 100.0
ROW = 9.6  # two rows of bulk work fill a job
PATIENCE = PATIENCE_S * 1e3
LINKS = 2 * LINK_S * 1e3
QUERIES_PER_S = 50
SECONDS = 3.0  # that most scenarios go on for
EVERY_S, RESTART_S = 0.5, 0.1  # of deaths: one after another, so that of several workers one is always there
ALL_ALIVE, DYING = "no worker dies", "workers die"
LIVES = pytest.mark.parametrize("lives", [ALL_ALIVE, DYING])


@pytest.fixture
def make_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pool]]:
    """Makes the pool of a test; its clock is the one that worker.turns reads. Bulk work in it is not `alone`: a query came just
    before."""
    pools: list[Pool] = []

    def make(workers: int, lives: str = ALL_ALIVE, *, alone: bool = False, **rules: Any) -> Pool:
        assert not pools
        pools.append(pool := Pool(0, slice_ms=SLICE, **rules))
        monkeypatch.setattr(turns, "time", pool.clock)
        if not alone:
            pool.core.load.disturbed_at = pool.clock.now
        for _ in range(workers):
            pool.start_worker()
        if lives == DYING:
            pool.clock.at(EVERY_S, lambda: pool.kill_in_turn(EVERY_S, RESTART_S))
        return pool

    yield make
    for pool in pools:
        pool.close()


def outage(workers: int, lives: str) -> float:
    """How long a death delays what the worker had in hand: until it is noticed or, if it was the only one, replaced."""
    return 0.0 if lives == ALL_ALIVE else REAP_S * 1e3 if workers > 1 else RESTART_S * 1e3


# ── (a) queries without end, beside bulk work ────────────────────────────────────────────────────────────────────────


def queries_without_end(pool: Pool, workers: int, how: str) -> Client:
    if how == "more than the pool can do":
        client = Client(pool, "queries", [OWN], budget_ms=200)
        client.ask_at(2 * workers * 1e3 / OWN, seconds=SECONDS, seed=1)
    else:  # each comes when a run of bulk work has just begun
        client = Client(pool, "queries", [OWN])
        client.keep_open(workers)
    return client


@LIVES
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("how", ["more than the pool can do", "one after the other"])
def test_bulk_work_has_one_of_so_many_runs_however_many_queries_there_are(
    make_pool: Callable[..., Pool], how: str, workers: int, lives: str
) -> None:
    pool = make_pool(workers, lives)
    bulk = Client(pool, "bulk", [ROW, ROW], priority="bulk")
    bulk.keep_open(2 * DEPTH * workers)
    queries = queries_without_end(pool, workers, how)
    pool.run(SECONDS)
    assert ("overloaded" in queries.codes()) is (how == "more than the pool can do"), "what is beyond is refused"
    overtaking = [n for worker in pool.all_workers() for n in overtook(worker.runs)]
    assert max(overtaking) == MOST_GIVEN, "the scenario asks for all that it can get, and gets no more"
    # A run of bulk work costs SLICE; each time that it gives way, a job of SLICE and what was done of the run: PATIENCE.
    most_ms = SLICE + MOST_GIVEN * (SLICE + PATIENCE if how == "one after the other" else SLICE + LINKS)
    dead_ms = 0 if lives == ALL_ALIVE else (SECONDS / EVERY_S) * (RESTART_S * 1e3 + most_ms)
    assert bulk.rows() >= 2 * ((SECONDS * 1e3 * workers - dead_ms) // most_ms - workers)
    assert bulk.codes() <= {"vectors", "open"}


def overtook(runs: list[Run]) -> list[int]:
    """How many runs of queries there were between any two of bulk work that came to their end."""
    counts = [0]
    for run in runs:
        if run.urgent:
            counts[-1] += 1
        elif run.ended:
            counts.append(0)
    return counts[1:] or [0]


# ── (b) bulk work without end, beside queries ────────────────────────────────────────────────────────────────────────


def with_those_ahead(query: Question) -> float:
    """Its own run and theirs; it may share a job with one more that came behind it."""
    return OWN * (query.ahead + 2) + LINKS


@LIVES
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("backlog", [4, 1000])
def test_a_query_waits_for_a_part_of_a_run_of_bulk_work_and_for_no_more_however_much_there_is(
    make_pool: Callable[..., Pool], backlog: int, workers: int, lives: str
) -> None:
    pool = make_pool(workers, lives)
    bulk = Client(pool, "bulk", [ROW] * 32, priority="bulk")
    bulk.keep_open(backlog)
    queries = Client(pool, "queries", [OWN])
    queries.ask_at(QUERIES_PER_S, SECONDS, seed=2)
    pool.run(SECONDS + 1)
    assert queries.codes() == {"vectors"} and len(queries.asked) > 100
    died = outage(workers, lives) + (OWN + SLICE if lives == DYING else 0.0)  # what is lost is run again, and what waited
    waits = sorted(query.ms - with_those_ahead(query) - died for query in queries.asked)
    assert waits[-1] <= SLICE, "a run that gave way so often that it goes on to its end"
    assert waits[int(len(waits) * 0.98)] <= PATIENCE, "or else one that is nearly over"
    assert queries.times_ms()[len(queries.asked) // 2] <= PATIENCE / 2 + OWN + LINKS, "the median"


def test_queries_are_spread_so_that_none_waits_for_a_whole_run_while_other_runs_would_give_way(
    make_pool: Callable[..., Pool],
) -> None:
    pool = make_pool(4)
    Client(pool, "bulk", [ROW] * 32, priority="bulk").keep_open(4)
    queries = Client(pool, "queries", [OWN])
    queries.ask_at(QUERIES_PER_S * 4, SECONDS, seed=2)
    pool.run(SECONDS + 1)
    had = [sum(run.urgent for run in worker.runs) for worker in pool.all_workers()]
    assert max(had) <= 2 * min(had)
    for query in queries.asked:
        assert query.ms <= PATIENCE + with_those_ahead(query)


# ── (c) one client floods ────────────────────────────────────────────────────────────────────────────────────────────


@LIVES
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("priority", ["bulk", "interactive"])
def test_beside_a_client_that_floods_another_is_served_within_the_jobs_in_hand_one_turn_and_its_own(
    make_pool: Callable[..., Pool], priority: str, workers: int, lives: str
) -> None:
    pool = make_pool(workers, lives)
    flood = Client(pool, "flood", [ROW, ROW], priority=priority)
    for _ in range(2000):
        flood.ask()
    other = Client(pool, "other", [ROW], priority=priority)
    other.keep_open(1)
    pool.run(SECONDS)
    assert other.codes() <= {"vectors", "open"}
    most_ms = (DEPTH + 2) * SLICE + LINKS
    if lives == DYING:  # what was in hand is run again, then the same once more
        most_ms = 2 * most_ms + outage(workers, lives)
    assert other.times_ms()[-1] <= most_ms
    assert len(other.served()) >= SECONDS * 1e3 / most_ms - 1
    assert flood.codes() == {"vectors", "open"}, "and the flood goes on beside it"


@pytest.mark.parametrize("priority", ["bulk", "interactive"])
def test_what_would_be_served_within_its_budget_is_not_refused_because_another_client_floods(
    make_pool: Callable[..., Pool], priority: str
) -> None:
    pool = make_pool(1)
    flood = Client(pool, "flood", [ROW, ROW], priority=priority)
    for _ in range(50):
        flood.ask()
    other = Client(pool, "other", [ROW], priority=priority, budget_ms=5 * SLICE)
    other.keep_open(1)
    pool.run(0.5)
    assert other.codes() <= {"vectors", "open"}


def test_a_client_that_fills_the_queue_leaves_room_for_another(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(1, max_queue_rows=200)
    flood = Client(pool, "flood", [ROW], priority="bulk")
    flood.keep_open(300)
    other = Client(pool, "other", [ROW], priority="bulk")
    other.keep_open(1)
    pool.run(0.5)
    assert "overloaded" in flood.codes()
    assert other.codes() <= {"vectors", "open"}


@pytest.mark.parametrize("workers", [1, 4])
def test_when_more_is_asked_than_can_be_done_what_is_answered_is_answered_in_time(
    make_pool: Callable[..., Pool], workers: int
) -> None:
    pool = make_pool(workers)
    budget_ms = 10 * SLICE
    queries = Client(pool, "queries", [OWN], budget_ms=budget_ms)
    queries.ask_at(2 * workers * 1e3 / OWN, SECONDS, seed=1)
    pool.run(SECONDS)
    in_time = [query for query in queries.served() if query.ms <= budget_ms]
    assert len(in_time) >= 0.9 * len(queries.served())
    assert len(in_time) * OWN >= 0.8 * SECONDS * 1e3 * workers, "and the workers do little else"


# ── (d) nothing is delayed ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("priority", ["bulk", "interactive"])
def test_a_request_to_an_idle_worker_is_given_out_in_the_same_step_and_takes_its_own_time(
    make_pool: Callable[..., Pool], priority: str, workers: int
) -> None:
    pool = make_pool(workers)
    client = Client(pool, "client", [OWN], priority=priority)
    for pause_s in (0.0, 0.0123, 0.1, 1.0, 0.00001):
        pool.run(pause_s)
        asked = [client.ask() for _ in range(workers)]
        assert pool.sends[-workers:] == [pool.clock.now] * workers
        pool.run(0.1)
        assert [question.ms for question in asked] == pytest.approx([OWN + LINKS] * workers)
    assert len(pool.sends) == 5 * workers


# ── (e) very long rows ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("priority", ["bulk", "interactive"])
def test_a_very_long_row_delays_those_behind_it_by_its_own_run_and_no_more(
    make_pool: Callable[..., Pool], priority: str
) -> None:
    pool = make_pool(1)
    long = Client(pool, "long", [LONG], priority=priority)
    others = [Client(pool, f"other {n}", [ROW], priority=priority) for n in range(10)]
    long.ask()
    for other in others:
        other.ask()
    pool.run(1)
    assert long.times_ms() == pytest.approx([LONG + LINKS])
    for place, other in enumerate(others):
        assert other.times_ms()[0] <= LONG + ROW * (place + 2) + LINKS


def test_beside_a_client_of_very_long_rows_another_waits_for_those_in_hand_and_for_one_turn(
    make_pool: Callable[..., Pool],
) -> None:
    pool = make_pool(1)
    long = Client(pool, "long", [LONG] * 4, priority="bulk")
    long.keep_open(10)
    other = Client(pool, "other", [ROW], priority="bulk")
    other.keep_open(1)
    pool.run(SECONDS)
    assert other.times_ms()[-1] <= (DEPTH + 1) * LONG + ROW + LINKS
    assert len(long.served()) * 4 * LONG >= SECONDS * 1e3 / 2, "and they are run too"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("priority", ["bulk", "interactive"])
def test_beside_very_long_rows_a_query_waits_for_one_of_them_at_most_and_they_all_end(
    make_pool: Callable[..., Pool], priority: str, workers: int
) -> None:
    pool = make_pool(workers)
    long = Client(pool, "long", [LONG], priority=priority)
    long.keep_open(1)
    queries = Client(pool, "queries", [OWN])
    queries.ask_at(QUERIES_PER_S, SECONDS, seed=3)
    pool.run(SECONDS + 1)
    assert queries.codes() == {"vectors"}
    for query in queries.asked:
        assert query.ms <= LONG + OWN * query.ahead + SLICE + LINKS, "it shares a job of SLICE with those behind it"
    if priority == "bulk":
        assert queries.times_ms()[len(queries.asked) // 2] <= PATIENCE + OWN + LINKS, "most interrupt it"
    assert long.times_ms()[-1] <= (MOST_GIVEN + 1) * LONG + MOST_GIVEN * SLICE, "it is begun so often, and then runs to its end"


# ── (f) bulk work that is alone ──────────────────────────────────────────────────────────────────────────────────────


def jobs_of(pool: Pool, begun_s: float, ended_s: float) -> float:
    """The mean time between two jobs given out, in milliseconds of one worker."""
    sends = [at for at in pool.sends if begun_s <= at < ended_s]
    return (ended_s - begun_s) * 1e3 * len(pool.workers) / len(sends)


def with_bulk_work_alone(make_pool: Callable[..., Pool]) -> Pool:
    """A worker that has done nothing but bulk work for a second, and has more."""
    pool = make_pool(1, alone=True)
    Client(pool, "bulk", [ROW] * 128, priority="bulk").keep_open(8)
    pool.run(1.0)
    return pool


@pytest.mark.parametrize("workers", [1, 2])
def test_bulk_work_that_is_alone_goes_in_longer_jobs_and_the_workers_end_together(
    make_pool: Callable[..., Pool], workers: int
) -> None:
    pool = make_pool(workers, alone=True)
    bulk = Client(pool, "bulk", [ROW] * 128, priority="bulk")
    for _ in range(8):
        bulk.ask()
    all_ms = 8 * 128 * ROW / workers
    pool.run(all_ms / 2e3)
    assert jobs_of(pool, 0.0, all_ms / 2e3) >= LONGER * SLICE / 2
    pool.run(all_ms / 1e3)
    assert bulk.times_ms()[-1] <= all_ms + (SLICE + ROW if workers > 1 else 0) + LINKS * len(pool.sends)


def test_from_the_first_query_on_jobs_are_short_and_long_ones_come_back_when_none_has_come_for_a_while(
    make_pool: Callable[..., Pool],
) -> None:
    pool = with_bulk_work_alone(make_pool)
    query = Client(pool, "query", [OWN])
    query.ask()
    settled = DEPTH * LONGER * SLICE / 1e3  # what was in hand
    pool.run(1.0 + QUIET_S)
    assert jobs_of(pool, 1.0 + settled, QUIET_S) <= SLICE + LINKS
    pool.run(2.0)
    assert jobs_of(pool, 2.0 + QUIET_S, 4.0 + QUIET_S) >= LONGER * SLICE / 2
    assert query.times_ms()[0] <= PATIENCE + OWN + LINKS


def test_a_second_client_with_bulk_work_waits_for_what_is_in_hand_once_and_then_for_short_turns(
    make_pool: Callable[..., Pool],
) -> None:
    pool = with_bulk_work_alone(make_pool)
    other = Client(pool, "other", [ROW], priority="bulk")
    other.keep_open(1)
    pool.run(SECONDS)
    first, *later = [question.ms for question in other.served()]
    assert first <= (DEPTH * LONGER + 1) * SLICE + LINKS
    assert max(later[1:]) <= (DEPTH + 2) * SLICE + LINKS
