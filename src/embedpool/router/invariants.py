"""The rules of core.py as assertions. Tests call `check` after every step; it is linear in all that is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedpool.router.core import Core

MOST_JOBS = 2  # of each class: core.DEPTH, stated again so that a change there is noticed here


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
    assert core.queue.requests == len(queued)
    assert core.queue.interactive_units == sum(r.units[row] for r in queued if r.interactive for row in r.waiting)
    assert len({id(r) for r in queued}) == len(queued)
    assert core.queue.rows == sum(len(r.waiting) for r in queued)
    assert core.queue.units == sum(r.units[row] for r in queued for row in r.waiting)
    assert core.queue.nbytes == sum(r.nbytes for r in queued)
    for session in core.sessions.values():
        assert session.inline_bytes == sum(len(request.inline or b"") for request in session.open.values())
    for request in core.all_open():
        mine = [s for job in given for s in job.slices if s.request is request]
        assert len(mine) == request.in_jobs, "in_jobs is not the number of slices in jobs"
        if request.refusal is None:
            in_jobs = sum(len(s.rows) for s in mine)
            assert in_jobs + len(request.waiting) + request.done_rows == len(request.units), "a row was lost"
        else:
            assert not request.waiting, "refused but still waiting"
        assert request.in_jobs or request.waiting, "open, but nothing is coming"
        assert not request.waiting or any(r is request for r in queued)
