"""The rules of core.py as assertions. Tests call `check` after every step; it is linear in all that is open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from embedpool.router.alike import key_of

if TYPE_CHECKING:
    from embedpool.router.core import Core
    from embedpool.router.state import Request

MOST_JOBS = 2  # of each class: roster.DEPTH, stated again so that a change there is noticed here


def check(core: Core) -> None:
    """Raises AssertionError, naming the rule that does not hold."""
    given = [job for worker in core.workers.values() for job in worker.jobs] + list(core.retries)
    assert len({job.id for job in given}) == len(given), "a job is in two places"
    for worker in core.workers.values():
        urgent = [job.urgent for job in worker.jobs]
        assert urgent.count(True) <= MOST_JOBS and urgent.count(False) <= MOST_JOBS
        assert urgent == sorted(urgent, reverse=True), "a job that is not urgent is before one that is"
    held: dict[tuple[int, int], int] = {}
    for job in given:
        for piece in job.slices:
            for row in piece.rows:
                held[id(piece.request), row] = held.get((id(piece.request), row), 0) + 1
            request = piece.request
            unanswered = request.session.open.get(request.ask.id) is request
            assert unanswered or request.session.closed, "answered while a row is still in a job"
    assert all(n == 1 for n in held.values()), "a row is in two jobs"
    assert not any(piece.request.abandoned for job in core.retries for piece in job.slices), "unwanted rows wait"
    queued = list(core.queue)
    lined = [*core.queue.interactive, *core.queue.bulk]
    assert len({id(r) for r in lined}) == len(lined)
    assert {id(r) for r in lined} == {id(r) for r in queued if r.waiting}, "in the line without a waiting row, or the reverse"
    assert all(r.waiting or r.following for r in queued)
    assert core.queue.rows == sum(len(r.waiting) + r.following for r in queued)
    for kind, units in core.queue.units.items():
        assert units == sum(r.units[row] for r in queued if r.interactive == kind for row in r.waiting)
    assert core.queue.nbytes == sum(r.nbytes for r in queued)
    for session in core.sessions.values():
        assert session.inline_bytes == sum(len(request.inline or b"") for request in session.open.values())
        own = [request for request in session.open.values() if request in core.queue.held]
        assert session.rows == sum(len(request.waiting) + request.following for request in own)
        assert session.nbytes == sum(request.nbytes for request in own)
        assert sum(session.units.values()) == sum(request.units[row] for request in own for row in request.waiting)
    for request in core.all_open():
        mine = [s for job in given for s in job.slices if s.request is request]
        assert len(mine) == request.in_jobs, "in_jobs is not the number of slices in jobs"
        if request.refusal is None:
            in_jobs = sum(len(s.rows) for s in mine)
            rows = in_jobs + len(request.waiting) + request.following + request.done_rows
            assert rows == len(request.units), "a row was lost"
        else:
            assert not request.waiting and not request.following, "refused but still waiting"
        assert request.in_jobs or request.waiting or request.following, "open, but nothing is coming"
        assert not (request.waiting or request.following) or request in core.queue.held
    _check_load(core, lined)
    _check_counts(core)
    _check_alike(core, held)


def _check_load(core: Core, lined: list[Request]) -> None:
    """What is known of the workers without asking them, against what they have."""
    for kind, units in core.load.in_hand.items():
        assert units == sum(job.units for worker in core.workers.values() for job in worker.jobs if job.urgent == kind)
    assert core.load.jobs == sum(len(worker.jobs) for worker in core.workers.values())
    idle = core.load.jobs == 0 and any(worker.takes_jobs for worker in core.workers.values())
    assert not idle or not (lined or core.retries), "rows wait, and nobody has anything to do"
    for kind in (True, False):
        assert core.roster.least_busy(kind) == _least_busy(core, kind), "the next job would go to another worker than it should"


def _least_busy(core: Core, urgent: bool) -> int:
    """As roster.least_busy says it, by asking every worker."""
    with_room = [n for n, w in core.workers.items() if w.takes_jobs and [j.urgent for j in w.jobs].count(urgent) < MOST_JOBS]

    def burden(number: int) -> tuple[int, int, int, int]:
        jobs = core.workers[number].jobs
        before = [job.units for job in jobs if job.urgent or not urgent]
        return sum(before), sum(job.units for job in jobs), core.workers[number].given, number

    return min(with_room, key=burden, default=0)


def _check_counts(core: Core) -> None:
    """What is counted for `status` adds up."""
    for kind in (True, False):
        tally = core.tally.of(kind)
        n_open = sum(request.interactive == kind for request in core.all_open())
        ended = tally.answered + sum(tally.refused.values()) + tally.dropped
        assert tally.requests == ended + n_open, "a request was counted twice, or not"
    for worker in core.workers.values():
        assert (worker.busy_at < math.inf) == bool(worker.jobs), "busy without a job, or the reverse"


def _check_alike(core: Core, held: dict[tuple[int, int], int]) -> None:
    """Who leads waits or is in a job; who follows has a leader of its own text."""
    following: dict[int, int] = {}
    for key, (request, row), followers in core.alike.groups():
        assert key_of(request.ask, row) == key
        assert row in request.waiting or (id(request), row) in held, "leads, but nothing is coming"
        for other, other_row in followers:
            assert key_of(other.ask, other_row) == key
            assert request.interactive or not other.interactive, "interactive work waits for bulk work"
            assert not other.abandoned, "an unwanted row follows"
            following[id(other)] = following.get(id(other), 0) + 1
    for request in core.queue.held:
        assert following.pop(id(request), 0) == request.following
    assert not following, "a row follows that is not counted"
