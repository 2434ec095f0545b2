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
from dataclasses import replace
from pathlib import Path

import zmq

from embedpool import protocol as wire
from embedpool.edge import SOON_S, stay_awake
from embedpool.errors import ModelError
from embedpool.lifeline import end_with
from embedpool.models.encoding import Encoder
from embedpool.models.spec import ModelSpec
from embedpool.router.cost import CHARS_PER_TOKEN, ROW_UNITS
from embedpool.shm.segment import WriteMap
from embedpool.worker.forkserver import Fork, run
from embedpool.worker.job import Model, run_job
from embedpool.worker.spec import WorkerSpec

log = logging.getLogger("embedpool.worker")

MakeEncoder = Callable[[int], Encoder]  # by the number of threads

WARM_UP_TOKENS = 16  # a usual query: allocates the arena, touches every weight
RECONNECT_MS = 20


def load(spec: ModelSpec) -> MakeEncoder:
    """What all workers of a model have in common, loaded; the rest of an encoder is made in each. Raises ModelError."""
    if not spec.directory:
        from embedpool.models.echo import EchoEncoder

        return lambda _: EchoEncoder(spec)
    from embedpool.models.encoder import OnnxEncoder, load_tokenizer

    tokenizer = load_tokenizer(spec)
    return lambda threads: OnnxEncoder(spec, threads, tokenizer)


def serve(spec: WorkerSpec, record_fd: int, make_encoder: MakeEncoder) -> None:
    """Runs until the process is ended. Each job's id is written to `record_fd` before it is begun: after a sudden death, that
    is what tells the job that caused it from those that were merely on their way. Raises ModelError."""
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)  # before the session is created: its threads inherit the mask
    encoder = make_encoder(spec.threads)
    unit_ms = warm_up(encoder, spec.model)
    model = Model(encoder, spec.model)
    maps: dict[str, WriteMap] = {}
    directory = Path(spec.segments)

    def open_segment(name: str, size: int) -> WriteMap:
        if name not in maps:
            maps[name] = WriteMap(directory, name, size)
        return maps[name]

    gc.freeze()  # what was imported and loaded lives for ever: keep the collector from walking it
    sock = _connect(spec)
    awake_until = 0.0
    while True:
        stay_awake(sock, awake_until)
        match wire.decode(sock.recv()):
            case wire.Job() as job:
                os.pwrite(record_fd, job.id.to_bytes(8, "little"), 0)
                started = time.perf_counter()
                outcome = run_job(job, model, open_segment)
                ended = time.perf_counter()
                ms = (ended - started) * 1e3
                awake_until = ended + SOON_S if ended - started < SOON_S else 0.0
                done = wire.Done(job.id, ms, tuple(outcome.tokens), tuple(outcome.failures))
                frames = [wire.encode(done), outcome.payload] if outcome.payload else [wire.encode(done)]
                with contextlib.suppress(zmq.Again):  # the router is gone; the next one does not know the job
                    sock.send_multipart(frames, zmq.NOBLOCK)
            case wire.Forget() as forget:
                for name in forget.segments:
                    maps.pop(name, None)
            case wire.Who():
                # A new router, or our first: whatever was mapped belonged to sessions of the one before.
                maps.clear()
                with contextlib.suppress(zmq.Again):
                    sock.send(wire.encode(wire.Ready(spec.worker, os.getpid(), unit_ms)), zmq.NOBLOCK)
            case other:
                log.error("a router does not send %s", type(other).__name__)


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
    encoder.run(rows, len(rows[0]))
    started = time.perf_counter()
    if not model.unit_ms:
        encoder.run(rows, len(rows[0]))
    ms = (time.perf_counter() - started) * 1e3
    return model.unit_ms or ms / (len(rows[0]) * CHARS_PER_TOKEN + ROW_UNITS)


def main(argv: list[str], load: Callable[[ModelSpec], MakeEncoder] = load) -> int:
    """The forkserver of a model's workers. `argv` is [SPEC_JSON, CONTROL_FD, LIFELINE_FD]. Returns 3 when the model cannot be
    loaded, 0 when the supervisor is gone. `load` is the seam for tests that need a model that misbehaves."""
    logging.basicConfig(format="embedpool worker: %(message)s", level=logging.WARNING)
    spec, lifeline = WorkerSpec.from_json(argv[0]), int(argv[2])
    try:
        make_encoder = load(spec.model)
    except ModelError as error:
        log.error("%s", error.message)
        return 3

    def become(fork: Fork, record_fd: int) -> None:
        end_with(lifeline)
        try:
            serve(replace(spec, worker=fork.worker, cores=fork.cores), record_fd, make_encoder)
        except ModelError as error:
            log.error("%s", error.message)
            raise SystemExit(3) from error

    with socket.socket(fileno=int(argv[1])) as control:
        run(control, become)
    return 0
