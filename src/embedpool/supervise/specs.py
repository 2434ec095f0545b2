"""What a generation's router and workers are told at their start."""

from __future__ import annotations

import os

from embedpool import __version__
from embedpool.config import traces_begin_here
from embedpool.router.admission import Admission
from embedpool.router.spec import RouterSpec
from embedpool.supervise import gpus
from embedpool.supervise.place import Place
from embedpool.supervise.slots import Generation
from embedpool.worker.spec import WorkerSpec


def router_spec(generation: Generation, place: Place) -> RouterSpec:
    config = generation.config
    rules = {name: getattr(config, name) for name in Admission.__dataclass_fields__ if hasattr(config, name)}
    return RouterSpec(
        endpoint=config.endpoint_url(),
        workers_endpoint=place.workers_endpoint,
        segments=str(place.segments) if config.endpoint_url().startswith("ipc://") else "",
        model=generation.spec.card(),
        admission=Admission(**rules),
        max_sessions=config.max_sessions,
        max_segment_bytes=config.max_segment_bytes,
        max_shm_bytes=config.max_shm_bytes,
        max_request_bytes=config.max_request_bytes,
        session_idle_s=config.session_idle_s,
        pool={
            "version": __version__,
            "pid": str(os.getpid()),
            "runtime_dir": str(place.path),
            "plan": generation.plan.reason,
        },
        log_format=config.log_format,
        trace_roots=traces_begin_here(),
    )


def worker_spec(generation: Generation, place: Place) -> WorkerSpec:
    return WorkerSpec(
        endpoint=place.workers_endpoint,
        segments=str(place.segments),
        threads=generation.config.threads_per_worker,
        gpus=gpus.of(generation.config),
        model=generation.spec,
        log_format=generation.config.log_format,
    )
