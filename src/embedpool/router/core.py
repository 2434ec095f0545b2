"""The router's decisions: events in, actions out, `now` as an argument. No socket, no clock, no file.

Called by server.Server, which turns frames into events and carries the actions out. The tests play histories through
`handle` and call `check` after every step. (Over the usual length: the rules below hold over all of it. What could be told
apart is: admission, alike, queue, cost, load, jobs, retries, suspects, tally, state, events, invariants.)

Rules
1. Every admitted request ends in exactly one Reply to the session that asked: Vectors or Refused. A request that is not
   admitted is refused in the same step.
2. A request's answer is sent only when none of its rows is in a job: then nobody writes to its room any more, and the
   client may use the room again. A cancelled or expired request therefore answers late rather than early.
3. A job is in one worker's hands. It leaves them when the worker answers, or when the supervisor has reaped the worker
   (`Lost`). Silence is answered with Kill, never with giving the job away.
4. A job whose worker died while running it runs once more elsewhere, and is a suspect (suspects.py): the row that kills is
   found, its request alone refused, and it is refused at once if it comes again.
5. Answers from workers that are gone, and for jobs that were given away, change nothing.
6. What waits is bounded in rows and bytes; what runs is at most load.DEPTH jobs of each class per worker. What nobody wants any
   more (refused, or its client gone) waits nowhere.
7. Interactive work waits for no bulk job: it goes to the worker with the least of its kind, which interrupts what it runs.
8. What cannot be answered within its budget is not begun: refused when it comes, or at the latest when its turn does.
9. Equal rows are computed once (alike.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from embedpool import protocol as wire
from embedpool.protocol import Embed, Failure, ModelCard, Refused, Vectors
from embedpool.router.admission import Admission
from embedpool.router.alike import Alike, Place, key_of, slices_of
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
    RetireAsked,
    Retired,
    SendJob,
    Switched,
)
from embedpool.router.invariants import check
from embedpool.router.jobs import chars_of, message, rows_done
from embedpool.router.load import Load, least_busy
from embedpool.router.queue import Line, Queue
from embedpool.router.retries import Retries
from embedpool.router.state import Counters, Job, Request, Session, Slice, Worker
from embedpool.router.suspects import Suspects
from embedpool.router.tally import ClassTally, Tally
from embedpool.router.traces import Traces
from embedpool.shm.layout import room_bytes

SWEEP_S = 0.02  # how often requests are looked at for having expired and workers for being hung
SWEEP_REQUEST_S = 1e-5  # and, for each of them, how much less often: looking takes 0.1 us, so that is 1 % of the time
HANG_FACTOR = 20.0  # a job is hung after this many times its estimate, and never before `hang_s`
MAX_JOB_ROWS = 256
MOST_UNLEARNED = 16  # jobs that have ended, until the cost model is told of them in any case
SAMPLE = 4  # requests, and runs, of a job from which the cost model learns: jobs come by the thousand
SOON_S = 250e-6  # edge.SOON_S, which this module must not import: it knows no socket


class Core:
    """See the module's rules. `first_job` differs from one router process to the next, so that a worker's late answer to
    a router that died never names a job of its successor. `traces` takes records of requests, None where nobody wants any."""

    def __init__(self, model: ModelCard, rules: Admission, first_job: int = 0, traces: Traces | None = None) -> None:
        self.model = model
        self.rules = rules
        self.traces = traces
        self.cost = CostModel(model.max_tokens)
        self.queue = Queue()
        self.alike = Alike()
        self.sessions: dict[bytes, Session] = {}
        self.workers: dict[int, Worker] = {}
        self.retries = Retries()
        self.counters = Counters()
        self.tally = Tally()
        self.draining = False
        self.failed = ""
        self.load = Load(self.queue, self.retries)
        self.awake_until = 0.0  # an answer is due so soon that sleeping would take longer
        self._full: set[bool] = set()  # classes of which no worker takes a job, until something else than a request comes
        self._unlearned: list[tuple[Job, wire.Done]] = []
        self._drained = False
        self._now = 0.0
        self._next_job = first_job
        self._sweep_at = 0.0

    def handle(self, event: Event, now: float) -> list[Action]:
        """One event's consequences. An event about a session or worker that is not known changes nothing."""
        out: list[Action] = []
        self._now = now
        if len(self._unlearned) >= MOST_UNLEARNED:
            self.learn()
        if type(event) is Asked:  # these two are nearly all events
            self._asked(event, now, out)
        elif type(event) is Finished:
            self._finished(event, now, out)
            self._full.clear()
        else:
            self._other(event, out)
            self._full.clear()
        if now >= self._sweep_at:
            self._expire(now, out)
        if self.queue.held or self.retries:
            self._dispatch(now, out)
        if self.draining and not self._drained and not self._open_requests():
            self._drained = True
            out.append(Drained())
        return out

    def learn(self) -> None:
        """What finished jobs say of costs. No answer waits for it: it is called when the actions are carried out."""
        for job, done in self._unlearned:
            self._learn(job, done)
        self._unlearned.clear()

    def _other(self, event: Event, out: list[Action]) -> None:
        match event:
            case Joined():
                self.workers[event.worker] = Worker(index=event.index)
                self.failed = ""  # a reload has mended what kept workers from starting
                self.load.count(self.workers)
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
            case RetireAsked():
                self._retire(event.worker, out)
            case Switched():
                self._switch(event, out)
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
        return bool(self.queue.held or self.retries or any(worker.jobs for worker in self.workers.values()))

    def _retire(self, number: int, out: list[Action]) -> None:
        worker = self.workers.get(number)
        if worker is not None:
            worker.retiring = True
            self.load.count(self.workers)
            if not worker.jobs:
                out.append(Retired(number))

    def _switch(self, event: Switched, out: list[Action]) -> None:
        other = event.model != self.model
        self.model, self.rules = event.model, event.rules
        if other or event.relearn:
            self.cost = CostModel(event.model.max_tokens)
            self._unlearned.clear()
        if other:
            self.retries.suspects = Suspects()
            for key in list(self.sessions):
                self._closed(key)
            for number in self.workers:
                self._retire(number, out)

    # ── requests ──

    def _asked(self, event: Asked, now: float, out: list[Action]) -> None:
        session = self.sessions.get(event.session)
        if session is None or event.ask.id in session.open:
            return  # an id that is open is the same request sent again: it has its one answer coming
        self.counters.requests += 1
        ask = event.ask
        interactive = self.rules.is_interactive(ask)
        self.load.asked(session, interactive, now)
        tally = self.tally.interactive if interactive else self.tally.bulk
        tally.requests += 1
        refusal = self._refusal(session, ask, event.nbytes)
        if refusal is not None:
            self._at_once(event, refusal, interactive, out)
            return
        dim = ask.dim or self.model.dim
        if not ask.texts:
            tally.answer(0, 0, (0.0, 0.0, 0.0), 0.0)
            answer = Vectors(ask.id, 0, dim, 0, self.model.fingerprint, ask.offset is None)
            self._at_once(event, answer, interactive, out)
            return
        request = self._request(session, event, dim, interactive, now)
        late = self.load.too_late(request, self.cost, self.rules, now) if self.workers else None
        if late is not None and not self.alike.leads_none(request):
            self._at_once(event, late, interactive, out)
            return
        if self.traces is not None:
            request.trace = self.traces.begun(ask, self.model.name, interactive, now)
        if ask.offset is None:
            request.inline = bytearray(room_bytes(len(ask.texts), dim, ask.dtype))
            session.inline_bytes += len(request.inline)
        session.open[ask.id] = request
        self.alike.admit(request)
        self.queue.add(request)

    def _at_once(self, event: Asked, answer: Vectors | Refused, interactive: bool, out: list[Action]) -> None:
        """The answer of a request that is not admitted."""
        if self.traces is not None:
            trace = self.traces.begun(event.ask, self.model.name, interactive, self._now)
            if trace is not None:
                trace.ended(answer, self._now)
        self._reply(event.session, answer, self.tally.of(interactive), out)

    def _request(self, session: Session, event: Asked, dim: int, interactive: bool, now: float) -> Request:
        ask = event.ask
        units = [self.cost.units(chars) for chars in chars_of(ask)]
        order = sorted(range(len(units)), key=units.__getitem__)
        # All processes of a machine share this clock. What took so long to come takes about as long to go back: where more is
        # asked than can be done, messages lie in sockets.
        way_s = now - ask.sent_s if 0.0 < ask.sent_s < now else 0.0
        deadline_at = now - 2 * way_s + ask.budget_ms / 1e3
        return Request(session, ask, dim, event.nbytes, units, now, deadline_at, interactive, order)

    def _refusal(self, session: Session, ask: Embed, nbytes: int) -> Refused | None:
        if self.failed:
            return Refused(ask.id, "pool_failed", f"no worker can be started: {self.failed}")
        if self.draining:
            return Refused(ask.id, "draining", "the pool is stopping: ask again", retryable=True, retry_after_ms=1000)
        return (
            self.rules.invalid(self.model, ask, session.segment_bytes)
            or (self._poisoned(ask) if self.retries.suspects.poison else None)
            or self.rules.too_full(ask, nbytes, self.queue, session, self._backlog_ms)
        )

    def _poisoned(self, ask: Embed) -> Refused | None:
        """A row that ended its workers a while ago is not tried again: nobody can take the pool down by asking for it again."""
        self.retries.suspects.forget(self._now)
        for row in range(len(ask.texts)):
            if hash(key_of(ask, row)) in self.retries.suspects.poison:
                return Refused(ask.id, "poison_row", f"text {row} ended every worker that read it a while ago", row=row)
        return None

    def _backlog_ms(self) -> float:
        return self.load.backlog_ms(self.cost)

    def _cancel(self, event: CancelAsked, out: list[Action]) -> None:
        session = self.sessions.get(event.session)
        request = session.open.get(event.id) if session else None
        if request is not None:
            self._refuse(request, Refused(event.id, "cancelled", "cancelled by its client"), out)

    def _refuse(self, request: Request, refusal: Refused, out: list[Action]) -> None:
        """The request will get this answer, as soon as none of its rows is in a job."""
        if request.refusal is None:
            request.refusal = refusal
        self._stop_waiting(request)
        self._lead_anew(self.alike.left(self.retries.drop_abandoned()))
        self._settle(request, out)

    def _stop_waiting(self, request: Request) -> None:
        """Its rows leave the queue; rows in a worker's hands do not."""
        waited = [Slice(request, tuple(request.waiting))]
        self.queue.remove(request)
        self.alike.stop_following(request)
        self._lead_anew(self.alike.left(waited))

    def _lead_anew(self, orphans: Iterable[Place]) -> None:
        """Rows whose leader has gone: one of each text waits in the queue now, in its stead."""
        for request, row in self.alike.place(orphans):
            self.queue.add_row(request, row)

    def _settle(self, request: Request, out: list[Action]) -> None:
        session, ask = request.session, request.ask
        if request.in_jobs or request.waiting or request.following or session.closed:
            return
        del session.open[ask.id]
        session.inline_bytes -= len(request.inline or b"")
        tally = self.tally.interactive if request.interactive else self.tally.bulk
        if request.refusal is not None:
            if request.trace is not None:
                request.trace.ended(request.refusal, self._now)
            self._reply(session.key, request.refusal, tally, out)
            return
        self.counters.rows += len(ask.texts)
        inline = request.inline is not None
        queue_ms = (min(request.begun_at, self._now) - request.arrived_at) * 1e3
        took = (queue_ms, request.tokenize_ms, request.run_ms)
        tally.answer(len(ask.texts), request.tokens, took, (self._now - request.arrived_at) * 1e3)
        answer = Vectors(ask.id, len(ask.texts), request.dim, request.tokens, self.model.fingerprint, inline, *took)
        if request.trace is not None:
            request.trace.ended(answer, self._now)
        self._reply(session.key, answer, tally, out, request.inline or b"")

    def _reply(
        self, session: bytes, message: Vectors | Refused, tally: ClassTally, out: list[Action], payload: bytes | bytearray = b""
    ) -> None:
        if isinstance(message, Refused):
            tally.refuse(message.code)
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
            self.tally.of(request.interactive).dropped += 1
            if request.trace is not None:
                request.trace.ended(None, self._now)
            self._stop_waiting(request)  # rows in a worker's hands finish into a segment that nobody reads
        self._lead_anew(self.alike.left(self.retries.drop_abandoned()))

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
            if worker.jobs and now >= worker.jobs[0].hung_at and not worker.killed:
                worker.killed = True
                self.load.count(self.workers)
                out.append(Kill(number, f"no answer to a job of {worker.jobs[0].rows()} rows"))
        self._sweep_at = now + SWEEP_S + SWEEP_REQUEST_S * len(self.queue.held)
        again = (piece.request for job in self.retries for piece in job.slices)
        for request in [r for r in (*self.queue.held, *again) if r.deadline_at <= now]:
            if request.refusal is None:
                self._refuse_expired(request, out)

    def _refuse_expired(self, request: Request, out: list[Action]) -> None:
        waited_ms = round((self._now - request.arrived_at) * 1e3)
        reason = f"not done within its budget: waited {waited_ms} ms"
        later_ms = max(1, round(self._backlog_ms()))
        self._refuse(request, Refused(request.ask.id, "expired", reason, retryable=True, retry_after_ms=later_ms), out)

    # ── jobs ──

    def _dispatch(self, now: float, out: list[Action]) -> None:
        """First what is interactive (rule 7), then every worker is kept busy with the rest."""
        for urgent in (True, False):
            while urgent not in self._full and self._waits(urgent):
                number = least_busy(self.workers, urgent)
                job = self._next(urgent, self.workers[number], out) if number else None
                if job is None:
                    self._full.add(urgent)
                    break
                self._give(number, self.workers[number], job, now, out)

    def _waits(self, urgent: bool) -> bool:
        return bool(self._line(urgent)) or self.retries.has(urgent)

    def _line(self, urgent: bool) -> Line:
        return self.queue.interactive if urgent else self.queue.bulk

    def _next(self, urgent: bool, worker: Worker, out: list[Action]) -> Job | None:
        """The next job of this class for this worker, if one waits that is not too late (rule 8)."""
        again = self.retries.take(urgent)
        if again is not None:
            return again
        before = sum([job.units for job in worker.jobs if job.urgent or not urgent]) if worker.jobs else 0
        begins_at = self._now + self.cost.wait_ms(before) / 1e3

        def late(request: Request) -> bool:
            return request.deadline_at < begins_at + self.cost.ms(request.units[request.waiting[-1]]) / 1e3

        line = self._line(urgent)
        while line and late(line.first()):
            self._refuse_expired(line.first(), out)
        slice_ms = self.load.slice_ms(urgent, self.cost, self.rules, self._now)
        slices = self.queue.take(line, self.cost, slice_ms, MAX_JOB_ROWS, late)
        for piece in slices:
            piece.request.in_jobs += 1
        along = self.alike.along(slices, MAX_JOB_ROWS)
        if along:
            slices += self._free_slices(along)
        return self._job(slices, urgent) if slices else None

    def _free_slices(self, places: list[Place]) -> list[Slice]:
        """Rows that followed go into a job that has, or can have, their vectors."""
        slices = slices_of(places, free=True)
        for piece in slices:
            self.queue.gone(piece.request, len(piece.rows))
            piece.request.in_jobs += 1
        self.counters.alike += len(places)
        return slices

    def _job(self, slices: list[Slice], urgent: bool, *, deaths: int = 0, lineage: int = 0, repeats: int = 0) -> Job:
        self._next_job += 1
        return Job(self._next_job, slices, urgent, deaths, lineage, repeats)

    def _give(self, number: int, worker: Worker, job: Job, now: float, out: list[Action]) -> None:
        job.hung_at = job.began_at = math.inf
        if not worker.jobs:
            worker.busy_at = now
        place = sum(other.urgent for other in worker.jobs) if job.urgent else len(worker.jobs)
        worker.jobs.insert(place, job)  # it overtakes what is not urgent
        self.load.given(job)
        worker.given = job.id
        if not place:
            self._start_clock(job, now)
            if len(worker.jobs) > 1:
                worker.jobs[1].chained = False
        self.counters.jobs += 1
        timed = self.traces is not None and any(piece.request.trace is not None for piece in job.slices)
        out.append(SendJob(number, message(job, timed)))

    def _start_clock(self, job: Job, now: float) -> None:
        """The job runs now, or goes on after another one."""
        estimate_s = self.cost.ms(job.units) / 1e3
        job.began_at = now
        job.hung_at = now + max(self.rules.hang_s, HANG_FACTOR * estimate_s)
        if estimate_s < SOON_S:
            self.awake_until = now + SOON_S

    def _finished(self, event: Finished, now: float, out: list[Action]) -> None:
        worker = self.workers.get(event.worker)
        job = next((job for job in worker.jobs if job.id == event.done.id), None) if worker else None
        if worker is None or job is None:
            self.counters.late_answers += 1
            return
        self._take_back(worker, job)
        if not worker.jobs:
            worker.busy_s += now - worker.busy_at
            worker.busy_at = math.inf
        if job.chained and not worker.retiring:
            self.cost.learn_drag(event.done.run_ms, (now - job.began_at) * 1e3)
        if worker.jobs:
            worker.jobs[0].chained = worker.jobs[0].began_at == math.inf
            self._start_clock(worker.jobs[0], now)
        worker.jobs_done += 1
        worker.rows_done += job.rows()
        if event.done.runs:
            self.tally.runs.add(event.done.runs)
        if not worker.retiring:  # it may be of the model before, which costs otherwise
            self._unlearned.append((job, event.done))
        failures: dict[int, Failure] = {}
        for failure in event.done.failures:
            failures.setdefault(failure.part, failure)
        payload = memoryview(event.payload)
        for i, piece in enumerate(job.slices):
            tokens = event.done.tokens[i] if i < len(event.done.tokens) else 0
            payload = rows_done(piece, job, event.done, tokens, payload)
            if piece.request.trace is not None:
                piece.request.trace.computed(worker.index, len(piece.rows), tokens, event.done, (job.began_at, now))
            self.counters.tokens += tokens
            self._piece_ended(piece, failures.get(i), out)
        orphans = self.alike.left(job.slices)
        if orphans:
            self._repeat(event.worker, worker, job, orphans, now, out)
        if worker.retiring and not worker.jobs:
            out.append(Retired(event.worker))

    def _take_back(self, worker: Worker, job: Job) -> None:
        worker.jobs.remove(job)
        self.load.taken_back(job)

    def _learn(self, job: Job, done: wire.Done) -> None:
        self.cost.learn(job.units, done.run_ms)
        self.cost.learn_shape(done.runs[:SAMPLE])
        for piece, tokens in zip(job.slices[:SAMPLE], done.tokens, strict=False):
            ask = piece.request.ask
            if ask.prompt is None and not ask.titles and tokens < self.model.max_tokens:  # no row of it can have been cut off
                self.cost.learn_text(sum([len(ask.texts[row]) for row in piece.rows]), tokens, len(piece.rows))

    def _repeat(self, number: int, worker: Worker, done: Job, places: list[Place], now: float, out: list[Action]) -> None:
        """Rows that came while the same text was computed: this worker still has the vectors."""
        now_on = places[:MAX_JOB_ROWS] if worker.takes_jobs else []
        if now_on:
            self.alike.lead(now_on)
            job = self._job(self._free_slices(now_on), done.urgent, repeats=done.id)
            self._give(number, worker, job, now, out)
        self._lead_anew(places[len(now_on) :])

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
        self.load.count(self.workers)
        jobs = list(worker.jobs)
        self.counters.requeued += len(jobs)
        for job in jobs:
            self._take_back(worker, job)
            if job.repeats:
                job.forget_repeat()
        self._settle_dropped([piece for job in jobs for piece in job.drop_abandoned()], out)
        poison = self.retries.add([job for job in jobs if job.slices], event.begun, self._now, self._job)
        if poison is not None:
            self._poison(poison, out)

    def _settle_dropped(self, dropped: list[Slice], out: list[Action]) -> None:
        """Rows that were taken out of jobs because nobody wants them any more."""
        self._lead_anew(self.alike.left(dropped))
        for request in dict.fromkeys(piece.request for piece in dropped):
            self._settle(request, out)

    def _poison(self, piece: Slice, out: list[Action]) -> None:
        """Refuses the row's request, and all others that wait for the same row."""
        key = key_of(piece.request.ask, piece.rows[0])
        self.retries.suspects.remember(hash(key), self._now)
        piece.request.in_jobs -= 1
        others = self.alike.left([piece])
        self._lead_anew(others)
        others += [place for place in self.alike.leaders(key) if place[1] in place[0].waiting]
        others += self.retries.places(key)
        for request, row in [(piece.request, piece.rows[0]), *others]:
            reason = f"text {row} ended every worker that read it; the other texts are fine"
            if request.refusal is None:  # a request can hold the row twice
                self._refuse(request, Refused(request.ask.id, "poison_row", reason, row=row), out)

    def check(self) -> None:
        """Raises AssertionError where a rule does not hold; see invariants.check."""
        check(self)
