"""The worker process: pin, open the session, warm up, say ready, then one job after the other until the supervisor is gone.

A worker trusts the router, which is ours, and no one else speaks to it. It holds no state that matters: killed at any
instant, its jobs run again elsewhere.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq

from embedpool import logs
from embedpool import protocol as wire
from embedpool.edge import SOON_S
from embedpool.errors import ModelError
from embedpool.lifeline import die_first, end_with
from embedpool.models.encoding import Encoder
from embedpool.models.spec import ModelSpec
from embedpool.router.cost import CHARS_PER_TOKEN, ROW_UNITS
from embedpool.shm.segment import WriteMap
from embedpool.worker.forkserver import Fork, run
from embedpool.worker.inbox import Inbox
from embedpool.worker.job import Known, Model, run_job
from embedpool.worker.spec import WorkerSpec
from embedpool.worker.turns import Spent, Turns

log = logging.getLogger("embedpool.worker")

MakeEncoder = Callable[["Seat"], Encoder]

WARM_UP_TOKENS = 16  # a usual query: allocates the arena, touches every weight
RECONNECT_MS = 20
KEPT_JOBS = 8  # done, with their vectors: a job that repeats one is sent when the router hears of its end, behind four at most


@dataclass(frozen=True, slots=True)
class Seat:
    """What one worker has to compute on: so many threads, and the GPU of that number where the model's provider has GPUs."""

    threads: int
    device: int


def load(spec: ModelSpec) -> MakeEncoder:
    """What all workers of a model have in common, loaded; the rest of an encoder is made in each. Raises ModelError."""
    if not spec.directory:
        from embedpool.models.echo import EchoEncoder

        return lambda _: EchoEncoder(spec)
    from embedpool.models.encoder import OnnxEncoder, load_tokenizer

    tokenizer = load_tokenizer(spec)
    return lambda seat: OnnxEncoder(spec, seat.threads, tokenizer, seat.device)


class Worker:
    """One worker's life. Each job's id is written to `record_fd` before it is begun: after a sudden death, that is what tells
    the job that caused it from those that were merely on their way."""

    def __init__(self, spec: WorkerSpec, record_fd: int, encoder: Encoder, cores: frozenset[int]) -> None:
        self.spec = spec
        self.unit_ms = warm_up(encoder, spec.model)
        self.sock = _connect(spec)
        self.inbox = Inbox(self.sock, encoder.interrupt, cores)
        self.turns = Turns(self.inbox, encoder, self._urgent)
        self.model = Model(self.turns, spec.model)
        self.maps: dict[str, WriteMap] = {}
        self.directory = Path(spec.segments)
        self.record_fd = record_fd
        self.current: wire.Job | None = None
        self.urgent_s = 0.0  # spent on urgent jobs, ever
        self.recent: dict[int, Known] = {}  # what the last jobs computed, by their ids, for those that repeat it

    def run(self) -> None:
        """Until the process is ended."""
        awake_until = 0.0
        while True:
            match self.inbox.next(awake_until):
                case wire.Job() as job:
                    took_s = self._do(job)
                    awake_until = time.perf_counter() + SOON_S if took_s < SOON_S else 0.0
                case wire.Forget() as forget:
                    for name in forget.segments:
                        self.maps.pop(name, None)
                case wire.Who():
                    # A new router, or our first: whatever was mapped belonged to sessions of the one before.
                    self.maps.clear()
                    self._send([wire.encode(wire.Ready(self.spec.worker, os.getpid(), self.unit_ms))])
                case other:
                    log.error("a router does not send %s", type(other).__name__)

    def _do(self, job: wire.Job) -> float:
        """Runs one job and answers it; the seconds that it took, without those of jobs that overtook it, and of runs
        that they interrupted."""
        self._begun(job)
        self.current = job
        overtaken, self.turns.spent = self.turns.spent, Spent()
        began, others_s = time.perf_counter(), self.urgent_s + self.turns.wasted_s
        run = self.turns.run_now if job.urgent else None
        outcome = run_job(job, self.model, self._open_segment, run, self.recent.get(job.repeats, {}))
        ended = time.perf_counter()
        took_s = ended - began - (self.urgent_s + self.turns.wasted_s - others_s)
        spent, self.turns.spent = self.turns.spent, overtaken
        counts, failures, runs = tuple(outcome.tokens), tuple(outcome.failures), tuple(spent.runs)
        # Both are CLOCK_MONOTONIC on Linux, perf_counter and the router's clock (PEP 418).
        moments = (began, ended) if job.timed else ()
        done = wire.Done(job.id, took_s * 1e3, counts, failures, runs, spent.tokenize_s * 1e3, *moments)
        self._keep(job.id, outcome.known)
        self._send([wire.encode(done), outcome.payload] if outcome.payload else [wire.encode(done)])
        return took_s

    def _keep(self, id: int, known: Known) -> None:
        self.recent[id] = known
        if len(self.recent) > KEPT_JOBS:
            del self.recent[next(iter(self.recent))]

    def _urgent(self, job: wire.Job) -> None:
        overtaken, began = self.current, time.perf_counter()
        self._do(job)
        if overtaken is not None:
            self._begun(overtaken)
        self.current = overtaken
        self.urgent_s += time.perf_counter() - began

    def _begun(self, job: wire.Job) -> None:
        os.pwrite(self.record_fd, job.id.to_bytes(8, "little"), 0)

    def _open_segment(self, name: str, size: int) -> WriteMap:
        if name not in self.maps:
            self.maps[name] = WriteMap(self.directory, name, size)
        return self.maps[name]

    def _send(self, frames: list[bytes]) -> None:
        with contextlib.suppress(zmq.Again):  # the router is gone; the next one does not know of what this is about
            self.sock.send_multipart(frames, zmq.NOBLOCK)


def serve(spec: WorkerSpec, record_fd: int, make_encoder: MakeEncoder) -> None:
    """Runs until the process is ended. Raises ModelError."""
    cores = frozenset(os.sched_getaffinity(0))
    if spec.cores:
        try:
            os.sched_setaffinity(0, spec.cores)  # before the session is created: its threads inherit the mask
        except OSError as error:  # they went offline just now; or a filter of system calls forbids it
            log.warning("not pinned to CPUs %s: %s", spec.cores, error.strerror)
    worker = Worker(spec, record_fd, make_encoder(Seat(spec.threads, spec.device)), cores)
    gc.freeze()  # what was imported and loaded lives for ever: keep the collector from walking it
    worker.run()


def _connect(spec: WorkerSpec) -> zmq.Socket[bytes]:
    sock = zmq.Context().socket(zmq.DEALER)
    sock.setsockopt(zmq.ROUTING_ID, b"w%d" % spec.worker)
    sock.setsockopt(zmq.PROBE_ROUTER, 1)  # as in client.link: every new router learns of us, and asks who
    sock.setsockopt(zmq.IMMEDIATE, 1)
    sock.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect(spec.endpoint)
    return sock


def warm_up(encoder: Encoder, model: ModelSpec) -> float:
    """One run, so that the first request finds everything in place; the milliseconds per unit of work (router.cost): those
    measured when the model was prepared, or this run's for the echo model."""
    rows = encoder.tokens(["warm " * WARM_UP_TOKENS], "right")
    rows[0] = rows[0][: min(WARM_UP_TOKENS, model.max_tokens)]
    encoder.run(rows, model.width(len(rows[0])))
    started = time.perf_counter()
    if not model.unit_ms:
        encoder.run(rows, model.width(len(rows[0])))
    ms = (time.perf_counter() - started) * 1e3
    return model.unit_ms or ms / (len(rows[0]) * CHARS_PER_TOKEN + ROW_UNITS)


def main(argv: list[str], load: Callable[[ModelSpec], MakeEncoder] = load) -> int:
    """The forkserver of a model's workers. `argv` is [SPEC_JSON, CONTROL_FD, LIFELINE_FD]. Returns 3 when the model cannot be
    loaded, 0 when the supervisor is gone. `load` is the seam for tests that need a model that misbehaves."""
    spec, lifeline = WorkerSpec.from_json(argv[0]), int(argv[2])
    logs.begin("embedpool worker", spec.log_format)
    try:
        make_encoder = load(spec.model)
    except ModelError as error:
        log.error("%s", error.message)
        return 3

    def become(fork: Fork, record_fd: int) -> None:
        end_with(lifeline)
        die_first()
        try:
            serve(spec.forked(fork.worker, fork.index, fork.cores), record_fd, make_encoder)
        except ModelError as error:
            log.error("%s", error.message)
            raise SystemExit(3) from error

    with socket.socket(fileno=int(argv[1])) as control:
        run(control, become)
    return 0
