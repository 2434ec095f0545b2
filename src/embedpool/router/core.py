"""The router's decisions: events in, actions out, `now` as an argument. No socket, no clock, no file.

Called by server.Server, which turns frames into events and carries the actions out. The tests play histories through
`handle` and call `check` after every step. (Over the usual length: the rules below hold over all of it. What could be told
apart is: admission, queue, cost, state, events, invariants.)

Rules
1. Every admitted request ends in exactly one Reply to the session that asked: Vectors or Refused. A request that is not
   admitted is refused in the same step.
2. A request's answer is sent only when none of its rows is in a job: then nobody writes to its room any more, and the
   client may use the room again. A cancelled or expired request therefore answers late rather than early.
3. A job is in one worker's hands. It leaves them when the worker answers, or when the supervisor has reaped the worker
   (`Lost`). Silence is answered with Kill, never with giving the job away.
4. A job whose worker died while running it runs once more elsewhere; after a second death it is split and its halves run
   alone, until the row that kills is alone and its request is refused. Every death shortens the list of suspects, so this
   ends. A job that its worker had not begun is no suspect (a worker may be dead before it is known to be), unless that
   happens MOST_LOSSES times. The row that killed is remembered for POISON_S, and refused at once if it comes again.
5. Answers from workers that are gone, and for jobs that were given away, change nothing.
6. What waits is bounded in rows and bytes; what runs is at most DEPTH jobs of each class per worker. What nobody wants any
   more (refused, or its client gone) waits nowhere.
7. Interactive work waits for no bulk job: it goes to the worker with the least of its kind, which interrupts what it runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from embedpool import protocol as wire
from embedpool.protocol import Embed, Failure, ModelCard, Refused, Vectors
from embedpool.router.admission import Admission
from embedpool.router.cost import CostModel
from embedpool.router.events import (
    Action,
    Asked,
    CancelAsked,
    Closed,
    DrainAsked,
    Drained,
    Event,
    Failed,
    Finished,
    Joined,
    Kill,
    Lost,
    Opened,
    Reply,
    SendJob,
)
from embedpool.router.invariants import check
from embedpool.router.queue import Line, Queue
from embedpool.router.state import Counters, Job, Request, Session, Slice, Worker
from embedpool.shm.layout import room_bytes, row_bytes

DEPTH = 2  # of each class: one job running, one ahead, so that a worker never waits for the router's round trip (150 us)
SWEEP_S = 0.1  # how often requests are looked at for having expired and workers for being hung
HANG_FACTOR = 20.0  # a job is hung after this many times its estimate, and never before `hang_s`
MAX_JOB_ROWS = 256
MOST_LOSSES = 6
POISON_S, MOST_POISON = 600.0, 1024  # how long rows that ended their workers are remembered, and how many
SOON_S = 250e-6  # edge.SOON_S, which this module must not import: it knows no socket


class Core:
    """See the module's rules. `first_job` differs from one router process to the next, so that a worker's late answer to
    a router that died never names a job of its successor."""

    def __init__(self, model: ModelCard, rules: Admission, first_job: int = 0) -> None:
        self.model = model
        self.rules = rules
        self.cost = CostModel(model.max_tokens)
        self.queue = Queue()
        self.sessions: dict[bytes, Session] = {}
        self.workers: dict[int, Worker] = {}
        self.retries: deque[Job] = deque()
        self.counters = Counters()
        self.draining = False
        self.failed = ""
        self.poison: dict[int, float] = {}  # digests of rows that ended their workers, and until when that is remembered
        self.awake_until = 0.0  # an answer is due so soon that sleeping would take longer
        self._drained = False
        self._now = 0.0
        self._next_job = first_job
        self._sweep_at = 0.0

    def handle(self, event: Event, now: float) -> list[Action]:
        """One event's consequences. An event about a session or worker that is not known changes nothing."""
        out: list[Action] = []
        self._now = now
        if type(event) is Asked:  # these two are nearly all events
            self._asked(event, now, out)
        elif type(event) is Finished:
            self._finished(event, now, out)
        else:
            self._other(event, out)
        if now >= self._sweep_at:
            self._expire(now, out)
        if self.queue.requests or self.retries:
            self._dispatch(now, out)
        if self.draining and not self._drained and not self._open_requests():
            self._drained = True
            out.append(Drained())
        return out

    def _other(self, event: Event, out: list[Action]) -> None:
        match event:
            case Joined():
                self.workers[event.worker] = Worker()
                self.cost.seed(event.unit_ms)
            case Lost():
                self._lost(event, out)
            case Opened():
                self._closed(event.session)
                self.sessions[event.session] = Session(event.session, event.segment, event.segment_bytes)
            case Closed():
                self._closed(event.session)
            case CancelAsked():
                self._cancel(event, out)
            case DrainAsked():
                self.draining = True
            case Failed():
                self._fail(event.reason, out)
            case _:
                pass  # Tick: handle looks at the time after every event

    def next_deadline(self) -> float | None:
        """When `handle(Tick())` is due at the latest; None when nothing waits for time to pass."""
        return self._sweep_at if self._busy() else None

    def _busy(self) -> bool:
        return bool(self.queue.requests or self.retries or any(worker.jobs for worker in self.workers.values()))

    # ── requests ──

    def _asked(self, event: Asked, now: float, out: list[Action]) -> None:
        session = self.sessions.get(event.session)
        if session is None or event.ask.id in session.open:
            return  # an id that is open is the same request sent again: it has its one answer coming
        self.counters.requests += 1
        ask = event.ask
        refusal = self._refusal(session, ask, event.nbytes)
        if refusal is not None:
            self._reply(event.session, refusal, out)
            return
        dim = ask.dim or self.model.dim
        if not ask.texts:
            self._reply(event.session, Vectors(ask.id, 0, dim, 0, self.model.fingerprint, ask.offset is None), out)
            return
        request = self._request(session, event, dim, now)
        late = self.rules.too_late(ask, self._wait_ms(request), bool(self.workers))
        if late is not None:
            self._reply(event.session, late, out)
            return
        if ask.offset is None:
            request.inline = bytearray(room_bytes(len(ask.texts), dim, ask.dtype))
            session.inline_bytes += len(request.inline)
        session.open[ask.id] = request
        self.queue.add(request)

    def _request(self, session: Session, event: Asked, dim: int, now: float) -> Request:
        ask = event.ask
        units = [self.cost.units(chars) for chars in _chars(ask)]
        order = sorted(range(len(units)), key=units.__getitem__)
        deadline_at = now + ask.budget_ms / 1e3
        interactive = self.rules.is_interactive(ask)
        return Request(session, ask, dim, event.nbytes, units, now, deadline_at, interactive, order)

    def _refusal(self, session: Session, ask: Embed, nbytes: int) -> Refused | None:
        if self.failed:
            return Refused(ask.id, "pool_failed", f"no worker can be started: {self.failed}")
        if self.draining:
            return Refused(ask.id, "draining", "the pool is stopping: ask again", retryable=True, retry_after_ms=1000)
        return (
            self.rules.invalid(self.model, ask, session.segment_bytes)
            or (self._poisoned(ask) if self.poison else None)
            or self.rules.too_full(ask, nbytes, self.queue, session, self._backlog_ms)
        )

    def _poisoned(self, ask: Embed) -> Refused | None:
        """A row that ended its workers a while ago is not tried again: nobody can take the pool down by asking for it again."""
        self.poison = {digest: until for digest, until in self.poison.items() if until > self._now}
        for row in range(len(ask.texts)):
            if _digest(ask, row) in self.poison:
                return Refused(ask.id, "poison_row", f"text {row} ended every worker that read it a while ago", row=row)
        return None

    def _backlog_ms(self) -> float:
        """Estimated time until a job given out now would start, if it had to wait for all others."""
        running = sum(job.units for worker in self.workers.values() for job in worker.jobs)
        retries = sum(job.units for job in self.retries)
        return self.cost.ms(self.queue.units + running + retries) / max(len(self.workers), 1)

    def _wait_ms(self, request: Request) -> float:
        """Estimated time to this request's answer. Interactive work overtakes what waits in bulk."""
        workers = max(len(self.workers), 1)
        own = self.cost.ms(max(max(request.units), sum(request.units) / workers))
        if not request.interactive:
            return own + self._backlog_ms()
        return own + self.cost.ms(self.queue.interactive_units) / workers

    def _cancel(self, event: CancelAsked, out: list[Action]) -> None:
        session = self.sessions.get(event.session)
        request = session.open.get(event.id) if session else None
        if request is not None:
            self._refuse(request, Refused(event.id, "cancelled", "cancelled by its client"), out)

    def _refuse(self, request: Request, refusal: Refused, out: list[Action]) -> None:
        """The request will get this answer, as soon as none of its rows is in a job."""
        if request.refusal is None:
            request.refusal = refusal
        self.queue.remove(request)
        self._purge_retries()
        self._settle(request, out)

    def _settle(self, request: Request, out: list[Action]) -> None:
        session, ask = request.session, request.ask
        if request.in_jobs or request.waiting or session.closed:
            return
        del session.open[ask.id]
        session.inline_bytes -= len(request.inline or b"")
        if request.refusal is not None:
            self._reply(session.key, request.refusal, out)
            return
        self.counters.rows += len(ask.texts)
        inline = request.inline is not None
        answer = Vectors(ask.id, len(ask.texts), request.dim, request.tokens, self.model.fingerprint, inline)
        self._reply(session.key, answer, out, request.inline or b"")

    def _reply(self, session: bytes, message: Vectors | Refused, out: list[Action], payload: bytes | bytearray = b"") -> None:
        if isinstance(message, Refused):
            self.counters.refused[message.code] = self.counters.refused.get(message.code, 0) + 1
        else:
            self.counters.answered += 1
        out.append(Reply(session, message, payload))

    def _closed(self, key: bytes) -> None:
        session = self.sessions.pop(key, None)
        if session is None:
            return
        session.closed = True
        for request in session.open.values():
            self.queue.remove(request)  # rows in a worker's hands finish into a segment that nobody reads
        self._purge_retries()

    def _open_requests(self) -> bool:
        return any(session.open for session in self.sessions.values())

    def _fail(self, reason: str, out: list[Action]) -> None:
        self.failed = reason
        for request in list(self.all_open()):
            self._refuse(request, Refused(request.ask.id, "pool_failed", f"no worker can be started: {reason}"), out)

    def all_open(self) -> Iterable[Request]:
        """Every admitted request that has no answer yet."""
        for session in self.sessions.values():
            yield from session.open.values()

    # ── time ──

    def _expire(self, now: float, out: list[Action]) -> None:
        for number, worker in self.workers.items():
            hung = next((job for job in worker.jobs if now >= job.hung_at), None)
            if hung is not None and not worker.killed:
                worker.killed = True
                out.append(Kill(number, f"no answer to a job of {hung.rows()} rows"))
        self._sweep_at = now + SWEEP_S
        again = (piece.request for job in self.retries for piece in job.slices)
        for request in [r for r in dict.fromkeys((*self.queue, *again)) if r.deadline_at <= now]:
            waited_ms = round((now - request.arrived_at) * 1e3)
            self._refuse(
                request,
                Refused(request.ask.id, "expired", f"not done within its budget: waited {waited_ms} ms", retryable=True),
                out,
            )

    # ── jobs ──

    def _dispatch(self, now: float, out: list[Action]) -> None:
        """First what is interactive (rule 7), then every worker is kept busy with the rest."""
        for urgent in (True, False):
            while self._waits(urgent):
                number = self._least_busy(urgent)
                job = self._next(urgent) if number else None
                if job is None:
                    break
                self._give(number, self.workers[number], job, now, out)

    def _waits(self, urgent: bool) -> bool:
        return bool(self._line(urgent)) or any(job.urgent == urgent for job in self.retries)

    def _line(self, urgent: bool) -> Line:
        return self.queue.interactive if urgent else self.queue.bulk

    def _least_busy(self, urgent: bool) -> int:
        """The worker with room for such a job that has the fewest of its kind, then the least to do at all; 0 for none."""
        best, least = 0, (DEPTH, 0)
        for number, worker in self.workers.items():
            if not worker.killed:
                busy = (sum(job.urgent == urgent for job in worker.jobs), sum(job.units for job in worker.jobs))
                if busy < least:
                    best, least = number, busy
        return best

    def _next(self, urgent: bool) -> Job | None:
        for job in self.retries:
            if job.urgent == urgent:
                self.retries.remove(job)
                return job
        slices = self.queue.take(self._line(urgent), self.cost, self.rules.slice_ms, MAX_JOB_ROWS)
        for piece in slices:
            piece.request.in_jobs += 1
        return self._job(slices, urgent) if slices else None

    def _job(self, slices: list[Slice], urgent: bool, deaths: int = 0) -> Job:
        self._next_job += 1
        return Job(self._next_job, slices, urgent, deaths)

    def _give(self, number: int, worker: Worker, job: Job, now: float, out: list[Action]) -> None:
        job.hung_at = math.inf
        if job.urgent:  # it overtakes what is not
            place = sum(other.urgent for other in worker.jobs)
            worker.jobs.insert(place, job)
        else:
            worker.jobs.append(job)
        self._start_clock(worker.jobs[0], now)
        self.counters.jobs += 1
        out.append(SendJob(number, wire.Job(job.id, tuple(self._part(s) for s in job.slices), job.urgent)))

    def _start_clock(self, job: Job, now: float) -> None:
        """The job runs now, or goes on after another one."""
        estimate_s = self.cost.ms(job.units) / 1e3
        job.hung_at = now + max(self.rules.hang_s, HANG_FACTOR * estimate_s)
        if estimate_s < SOON_S:
            self.awake_until = now + SOON_S

    def _part(self, piece: Slice) -> wire.Part:
        request, ask = piece.request, piece.request.ask
        session = request.session
        texts = ask.texts if len(piece.rows) == 1 == len(ask.texts) else tuple([ask.texts[row] for row in piece.rows])
        return wire.Part(
            session.segment if ask.offset is not None else "",
            session.segment_bytes,
            ask.offset or 0,
            request.dim,
            piece.rows,
            texts,
            ask.prompt_name,
            ask.normalize,
            ask.truncate,
            ask.dtype,
            ask.prompt,
            tuple([ask.titles[row] for row in piece.rows]) if ask.titles else (),
        )

    def _finished(self, event: Finished, now: float, out: list[Action]) -> None:
        worker = self.workers.get(event.worker)
        job = next((job for job in worker.jobs if job.id == event.done.id), None) if worker else None
        if worker is None or job is None:
            self.counters.late_answers += 1
            return
        worker.jobs.remove(job)
        if worker.jobs:
            self._start_clock(worker.jobs[0], now)
        worker.jobs_done += 1
        worker.rows_done += job.rows()
        self.cost.learn(job.units, event.done.run_ms)
        failures: dict[int, Failure] = {}
        for failure in event.done.failures:
            failures.setdefault(failure.part, failure)
        payload = memoryview(event.payload)
        for i, piece in enumerate(job.slices):
            tokens = event.done.tokens[i] if i < len(event.done.tokens) else 0
            payload = self._rows_done(piece, tokens, payload)
            self._piece_ended(piece, failures.get(i), out)

    def _rows_done(self, piece: Slice, tokens: int, payload: memoryview) -> memoryview:
        """Books a slice's rows; returns the payload behind its inline rows."""
        request = piece.request
        request.done_rows += len(piece.rows)
        request.tokens += tokens
        self.counters.tokens += tokens
        if request.inline is None:
            return payload
        width = row_bytes(request.dim, request.ask.dtype)
        for i, row in enumerate(piece.rows):
            request.inline[row * width : (row + 1) * width] = payload[i * width : (i + 1) * width]
        return payload[len(piece.rows) * width :]

    def _piece_ended(self, piece: Slice, failure: Failure | None, out: list[Action]) -> None:
        request = piece.request
        request.in_jobs -= 1
        if failure is not None:
            refusal = Refused(request.ask.id, failure.code, failure.message, row=failure.row)
            self._refuse(request, refusal, out)
        elif not request.in_jobs:
            self._settle(request, out)

    # ── deaths ──

    def _lost(self, event: Lost, out: list[Action]) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return
        self.counters.requeued += len(worker.jobs)
        unwanted: dict[Request, None] = {}
        for job in worker.jobs:
            unwanted |= dict.fromkeys(job.drop_abandoned())
        for request in unwanted:
            self._settle(request, out)
        for job in reversed(worker.jobs):
            job.losses += job.id != event.begun
            if not job.slices:
                continue
            if job.id == event.begun or job.losses >= MOST_LOSSES:
                self._try_again(job, out)
            else:
                self.retries.appendleft(job)

    def _try_again(self, suspect: Job, out: list[Action]) -> None:
        """The job that a worker died with (rule 4)."""
        suspect.deaths += 1
        if suspect.deaths < 2:
            self.retries.appendleft(suspect)
        elif suspect.rows() > 1:
            self.retries.extendleft(reversed(self._halves(suspect)))
        else:
            self._poison(suspect.slices[0], out)

    def _purge_retries(self) -> None:
        """Takes out of the jobs that wait for a second try the rows that nobody wants any more."""
        for job in list(self.retries):
            if job.drop_abandoned() and not job.slices:
                self.retries.remove(job)

    def _halves(self, job: Job) -> list[Job]:
        """The suspects in two jobs, each with one death to its name: one more splits it again."""
        pairs = [(s.request, row) for s in job.slices for row in s.rows]
        middle = len(pairs) // 2
        for piece in job.slices:
            piece.request.in_jobs -= 1
        halves = []
        for part in (pairs[:middle], pairs[middle:]):
            rows_of: dict[Request, list[int]] = {}
            for request, row in part:
                rows_of.setdefault(request, []).append(row)
            slices = [Slice(request, tuple(rows)) for request, rows in rows_of.items()]
            for piece in slices:
                piece.request.in_jobs += 1
            halves.append(self._job(slices, job.urgent, deaths=1))
        return halves

    def _poison(self, piece: Slice, out: list[Action]) -> None:
        row = piece.rows[0]
        if len(self.poison) < MOST_POISON:
            self.poison[_digest(piece.request.ask, row)] = self._now + POISON_S
        failure = Failure(0, row, "poison_row", f"text {row} ended every worker that read it; the other texts are fine")
        self._piece_ended(piece, failure, out)

    def check(self) -> None:
        """Raises AssertionError where a rule does not hold; see invariants.check."""
        check(self)


def _digest(ask: Embed, row: int) -> int:
    """Of a row and what is put before it. 64 bits, salted by the interpreter: nobody finds another text with the same."""
    return hash((ask.texts[row], ask.titles[row] if ask.titles else "", ask.prompt, ask.prompt_name, ask.truncate))


def _chars(ask: Embed) -> Iterable[int]:
    """How much the model has to read per row: the text with what is put before it. (The model's own prompts are short.)"""
    before = len(ask.prompt or "")
    if ask.titles:
        return [before + len(title) + len(text) for title, text in zip(ask.titles, ask.texts, strict=True)]
    return [before + len(text) for text in ask.texts] if before else map(len, ask.texts)
