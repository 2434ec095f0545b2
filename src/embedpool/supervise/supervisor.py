"""A pool's whole life: place, model, router, workers, watching, restarts, drain, end. One thread, one selector.

Touches neither ZeroMQ nor ONNX Runtime: nothing that a peer sends, and nothing that a model does, can take it down.

Rules
1. A child is started by `spawn`, or a worker by the forkserver, and is gone only when reaped; the router hears of a worker's
   end (Reaped) only then.
2. Every child that ends is either started again, at the time that policy.Restarts names, or the pool is failed.
3. The record file names all living children at any time, so that the next start finds what a SIGKILL leaves.
4. Leaving `run` by any path ends all children and empties the runtime directory.

(Over the usual length: the rules hold over all of it. What could be told apart is: place, policy, processes, forks.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from embedpool import __version__, control
from embedpool.config import Config
from embedpool.lifeline import adopt_orphans
from embedpool.models.spec import ModelSpec
from embedpool.router.admission import Admission
from embedpool.router.spec import RouterSpec
from embedpool.supervise.cores import CorePlan
from embedpool.supervise.forks import ForkFailed, Forks
from embedpool.supervise.place import Place
from embedpool.supervise.policy import Restarts
from embedpool.supervise.processes import Child, end, end_strays, record, spawn
from embedpool.worker.forkserver import Fork
from embedpool.worker.spec import WorkerSpec

log = logging.getLogger("embedpool.supervisor")

END_PATIENCE_S = 3.0
ROUTER_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Programs:
    """The modules that run as children; tests put their own in place of the worker."""

    router: str = "embedpool.router"
    worker: str = "embedpool.worker"


@dataclass(slots=True, eq=False)
class Slot:
    """One place in the pool: the child that fills it, or when the next one is due."""

    name: str
    index: int = -1  # of a worker
    cores: tuple[int, ...] = ()
    child: Child | None = None
    worker: int = 0  # the child's number, never used twice
    ready: bool = False
    due_at: float | None = 0.0
    restarts: Restarts = field(default_factory=Restarts)
    killed_for: str = ""
    record_fd: int = -1  # where the worker writes which job it begins

    def take_record(self) -> int:
        """The last job that the worker, which is reaped, had begun; 0 for none. A SIGKILL does not take this from us."""
        if self.record_fd < 0:
            return 0
        begun = int.from_bytes(os.pread(self.record_fd, 8, 0), "little")
        os.close(self.record_fd)
        self.record_fd = -1
        return begun


class Supervisor:
    """Runs one pool. `on_ready` is called once, when the first answer could be given."""

    def __init__(self, config: Config, spec: ModelSpec, place: Place, plan: CorePlan, on_ready: Callable[[], None]) -> None:
        self.config = config
        self.spec = spec
        self.place = place
        self.programs = Programs()
        self.owner_fd = -1  # the other end is held by the process that this pool belongs to; -1: to nobody
        self.router = Slot("router")
        self.forkserver = Slot("forkserver")
        self.workers = [Slot(f"worker {i}", i, cores) for i, cores in enumerate(plan.workers)]
        self.reason = plan.reason
        self._on_ready = on_ready
        self._selector = selectors.DefaultSelector()
        self._link: socket.socket | None = None
        self._forks: Forks | None = None
        self._spawned = 0
        self._was_ready = False
        self._failed = ""
        self._stop_at: float | None = None  # draining until then
        self._stopped = False

    def run(self) -> int:
        """Returns the exit status: 0 after a clean stop, 1 when the pool failed."""
        adopt_orphans()
        self._lifeline, self._lifeline_end = os.pipe()
        wake, wake_end = socket.socketpair()
        for end_of in (wake, wake_end):
            end_of.setblocking(False)
        before = signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        handlers = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGTERM, signal.SIGINT)}
        self._selector.register(wake, selectors.EVENT_READ, self._signalled)
        if self.owner_fd >= 0:
            self._selector.register(self.owner_fd, selectors.EVENT_READ, self._owner_gone)
        try:
            while not self._stopped:
                self._start_what_is_due()
                for key, _ in self._selector.select(self._patience_s()):
                    key.data(key.fileobj)
                self._check_times()
        finally:
            self._end_all()
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for end_of in (wake, wake_end):
                end_of.close()
        if self._failed:
            log.error("the pool failed: %s", self._failed)
        return 1 if self._failed else 0

    # ── starting ──

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.child is None and slot.due_at is not None and slot.due_at <= now and not self._stopped:
                if slot.index >= 0 and not self.forkserver.ready:
                    continue
                slot.due_at, slot.ready, slot.killed_for = None, False, ""
                if slot is self.router:
                    self._start_router()
                elif slot is self.forkserver:
                    self._start_forkserver()
                else:
                    self._start_worker(slot)
                if slot.child is not None:
                    self._selector.register(slot.child, selectors.EVENT_READ, lambda _, slot=slot: self._ended(slot))
                    self._record()

    @property
    def _slots(self) -> tuple[Slot, ...]:
        return (self.router, self.forkserver, *self.workers)

    def _start_router(self) -> None:
        ours, theirs = control.pair()
        with theirs:
            self.router.child = spawn(
                "router", self.programs.router, [self._router_spec(), str(theirs.fileno())], [theirs.fileno()]
            )
        self._link = ours
        self._selector.register(ours, selectors.EVENT_READ, self._hear)
        for slot in self.workers:
            if slot.child is not None:
                self._tell_of(slot)
        if self._failed:
            control.say(ours, control.GivenUp(self._failed))
        if self._stop_at is not None:
            control.say(ours, control.Drain())

    def _start_forkserver(self) -> None:
        spec = WorkerSpec(
            endpoint=self.place.workers_endpoint,
            segments=str(self.place.segments),
            threads=self.config.threads_per_worker,
            model=self.spec,
        )
        ours, theirs = control.pair()
        with theirs:
            fds = [theirs.fileno(), self._lifeline]
            self.forkserver.child = spawn("forkserver", self.programs.worker, [spec.to_json(), *map(str, fds)], fds)
        self._forks = Forks(ours)
        self._selector.register(self._forks, selectors.EVENT_READ, self._forkserver_spoke)

    def _forkserver_spoke(self, forks: Forks) -> None:
        """It is ready, or gone, of which its pidfd tells; from now on it is read only where it is asked."""
        if forks is not self._forks:
            return  # it was lost in this very turn of the loop
        self._selector.unregister(forks)
        if forks.is_ready():
            self.forkserver.ready = True
            self.forkserver.restarts.ready(time.monotonic())

    def _start_worker(self, slot: Slot) -> None:
        assert self._forks is not None
        self._spawned += 1
        slot.worker = self._spawned
        fork = Fork(slot.worker, slot.index, slot.cores if self.config.pin else ())
        slot.record_fd = os.memfd_create("embedpool-worker", os.MFD_CLOEXEC)
        try:
            slot.child = self._forks.fork(slot.name, fork, slot.record_fd)
        except ForkFailed as error:
            slot.take_record()
            slot.due_at = time.monotonic()
            self.forkserver.ready = False  # until the next one is
            self.forkserver.killed_for = str(error)
            if self.forkserver.child is not None:
                self.forkserver.child.kill()
            return
        self._tell_of(slot)

    def _tell_of(self, slot: Slot) -> None:
        if self._link is not None and slot.child is not None:
            note = control.Spawned(slot.worker, slot.index, slot.child.pid, slot.cores, slot.restarts.total)
            control.say(self._link, note)

    def _router_spec(self) -> str:
        config = self.config
        rules = {name: getattr(config, name) for name in Admission.__dataclass_fields__ if hasattr(config, name)}
        spec = RouterSpec(
            endpoint=config.endpoint_url(),
            workers_endpoint=self.place.workers_endpoint,
            segments=str(self.place.segments) if config.endpoint_url().startswith("ipc://") else "",
            model=self.spec.card(),
            admission=Admission(**rules),
            max_sessions=config.max_sessions,
            max_segment_bytes=config.max_segment_bytes,
            max_shm_bytes=config.max_shm_bytes,
            max_request_bytes=config.max_request_bytes,
            session_idle_s=config.session_idle_s,
            pool={
                "version": __version__,
                "pid": str(os.getpid()),
                "runtime_dir": str(self.place.path),
                "plan": self.reason,
            },
        )
        return spec.to_json()

    def _record(self) -> None:
        record(self.place.record, self._children())

    def _children(self) -> list[int]:
        return [slot.child.pid for slot in self._slots if slot.child is not None]

    # ── what happens ──

    def _hear(self, link: socket.socket) -> None:
        try:
            for note in control.heard(link):
                self._heard(note)
        except EOFError:
            self._selector.unregister(link)
            link.close()
            if self._link is link:
                self._link = None

    def _heard(self, note: control.Note) -> None:
        now = time.monotonic()
        match note:
            case control.Bound():
                self.router.ready = True
                self.router.restarts.ready(now)
            case control.CannotBind():
                self.router.killed_for = note.reason
            case control.WorkerJoined():
                for slot in self.workers:
                    if slot.worker == note.worker and slot.child is not None:
                        slot.ready = True
                        slot.restarts.ready(now)
                        self._first_ready()
            case control.WorkerHung():
                for slot in self.workers:
                    if slot.worker == note.worker and slot.child is not None:
                        slot.killed_for = note.reason
                        slot.child.kill()
            case control.WorkDone():
                self._stopped = True
            case _:
                log.error("a router does not say %s", type(note).__name__)

    def _first_ready(self) -> None:
        if not self._was_ready:
            self._was_ready = True
            self._on_ready()

    def _ended(self, slot: Slot) -> None:
        assert slot.child is not None
        self._selector.unregister(slot.child)
        how = slot.child.reap()
        reason = slot.killed_for or how
        slot.child = None
        self._record()
        begun = slot.take_record()
        if self._stopped:
            return
        if slot is self.forkserver:
            self._lose_forks()
        elif slot is not self.router and self._link is not None:
            control.say(self._link, control.Reaped(slot.worker, reason, begun))
        wait_s = slot.restarts.ended(time.monotonic())
        if slot.index >= 0 and self.forkserver.due_at is None and self.forkserver.child is None:
            wait_s = None  # there is nobody left who could start it
        if wait_s is None:
            log.error("%s ended (%s) on every try to start it", slot.name, reason)
            self._give_up(slot, reason)
        else:
            log.warning("%s ended (%s): starting it again in %.1f s", slot.name, reason, wait_s)
            slot.due_at = time.monotonic() + wait_s

    def _lose_forks(self) -> None:
        if self._forks is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._forks)
            self._forks.close()
        self._forks, self.forkserver.ready = None, False
        end_strays(self._children())

    def _give_up(self, slot: Slot, reason: str) -> None:
        if slot is self.forkserver:
            for worker in self.workers:
                worker.due_at = None  # those that run go on; nobody can take their place
        others = [s for s in self.workers if s.child is not None or s.due_at is not None]
        if slot is not self.router and others:
            return  # the pool goes on with fewer workers
        self._failed = f"{slot.name} ended ({reason}) each time it was started"
        if self._link is not None:
            control.say(self._link, control.GivenUp(self._failed))
        if slot is self.router or not self._was_ready:
            self._stopped = True

    def _signalled(self, wake: socket.socket) -> None:
        wake.recv(64)
        if self._stop_at is not None or self._link is None or not self._was_ready:
            self._stopped = True  # the second signal, or nothing to drain
            return
        log.info("stopping: finishing what was accepted, at most %.0f s", self.config.drain_s)
        self._stop_at = time.monotonic() + self.config.drain_s
        control.say(self._link, control.Drain())

    def _owner_gone(self, _: object) -> None:
        self._stopped = True

    # ── time ──

    def _check_times(self) -> None:
        now = time.monotonic()
        if self._stop_at is not None and now >= self._stop_at:
            log.warning("stopping with requests open: they were not done within drain_s")
            self._stopped = True
        for slot, patience_s in self._starting():
            if now - slot.child.started_at >= patience_s and not slot.killed_for:  # type: ignore[union-attr]
                slot.killed_for = f"not ready within {patience_s:.0f} s"
                slot.child.kill()  # type: ignore[union-attr]

    def _starting(self) -> list[tuple[Slot, float]]:
        slots = [(self.router, ROUTER_START_S)]
        slots += [(slot, self.config.start_timeout_s) for slot in (self.forkserver, *self.workers)]
        return [(slot, patience_s) for slot, patience_s in slots if slot.child is not None and not slot.ready]

    def _patience_s(self) -> float | None:
        now = time.monotonic()
        waiting = [slot for slot in self._slots if slot.index < 0 or self.forkserver.ready]
        due = [slot.due_at for slot in waiting if slot.due_at is not None and slot.child is None]
        due += [slot.child.started_at + patience_s for slot, patience_s in self._starting() if slot.child is not None]
        if self._stop_at is not None:
            due.append(self._stop_at)
        return max(0.0, min(due) - now) if due else None

    # ── the end ──

    def _end_all(self) -> None:
        """The router ends by itself when the link closes, having sent what is sent; workers have nothing to finish."""
        if self._link is not None:
            self._link.close()
        children = [slot.child for slot in (self.forkserver, *self.workers, self.router) if slot.child is not None]
        end(children, END_PATIENCE_S)
        self._lose_forks()
        for slot in self.workers:
            slot.take_record()
        for fd in (self._lifeline, self._lifeline_end):
            os.close(fd)
        self._selector.close()
