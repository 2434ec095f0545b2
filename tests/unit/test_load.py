"""Which worker a job goes to, against the sentence that says it (router.roster)."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from embedpool.router.roster import DEPTH, Roster
from embedpool.router.state import Job, Worker


def job(units: int, urgent: bool) -> Job:
    made = Job(1, [], urgent)
    made.units = units
    return made


def worker(*jobs: Job, given: int = 0, killed: bool = False, retiring: bool = False) -> Worker:
    return Worker(deque(jobs), killed, retiring, given)


def least_busy(workers: dict[int, Worker], urgent: bool) -> int:
    roster = Roster(workers)
    for number in workers:
        roster.changed(number)
    return roster.least_busy(urgent)


def by_its_definition(workers: dict[int, Worker], urgent: bool) -> int:
    """Slow and plain: those with room, by what is before the job, then by all they have, then by who waited longest."""
    with_room = [n for n, w in workers.items() if w.takes_jobs and [j.urgent for j in w.jobs].count(urgent) < DEPTH]

    def burden(number: int) -> tuple[int, int, int, int]:
        jobs = workers[number].jobs
        before = [j.units for j in jobs if j.urgent or not urgent]
        return sum(before), sum(j.units for j in jobs), workers[number].given, number

    return min(with_room, key=burden, default=0)


def test_a_query_counts_queries_first_and_bulk_work_only_among_equals() -> None:
    workers = {1: worker(job(5, True)), 2: worker(job(900, False)), 3: worker(job(800, False))}
    assert least_busy(workers, urgent=True) == 3
    assert least_busy(workers, urgent=False) == 1


def test_among_equals_it_is_the_one_whose_last_job_is_the_oldest() -> None:
    assert least_busy({1: worker(given=9), 2: worker(given=4), 3: worker(given=7)}, urgent=True) == 2


def test_a_full_worker_gets_no_job_of_that_class_and_one_that_goes_gets_none() -> None:
    full = worker(*[job(1, True)] * DEPTH)
    assert least_busy({1: full}, urgent=True) == 0
    assert least_busy({1: full}, urgent=False) == 1
    assert least_busy({1: worker(killed=True), 2: worker(retiring=True)}, urgent=False) == 0
    assert least_busy({}, urgent=True) == 0


JOBS = st.lists(st.builds(job, st.integers(0, 3), st.booleans()), max_size=2 * DEPTH)
FLAGS = (st.booleans(), st.booleans(), st.integers(0, 3))
WORKERS = st.lists(st.builds(lambda jobs, *flags: Worker(deque(jobs), *flags), JOBS, *FLAGS))


@given(WORKERS, st.booleans())
def test_it_is_what_its_definition_says(found: list[Worker], urgent: bool) -> None:
    workers = dict(enumerate(found, 1))
    assert least_busy(workers, urgent) == by_its_definition(workers, urgent)
