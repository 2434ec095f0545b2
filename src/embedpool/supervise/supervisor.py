"""A pool's whole life: router, workers, watching, restarts, replacements, drain, end. One thread, one selector.

Touches neither ZeroMQ nor ONNX Runtime: nothing that a peer sends, and nothing that a model does, can take it down.

Rules
1. A child is started by `spawn`, or a worker by the forkserver, and is gone only when reaped; the router hears of a worker's
   end (Reaped) only then.
2. Every child that ends is started again, at the time that policy.Restarts names, or replaced, or not needed any more, or the
   pool is failed.
3. The record file names all living children at any time, so that the next start finds what a SIGKILL leaves.
4. Leaving `run` by any path ends all children and empties the runtime directory.
5. A worker that still serves is replaced only by one that is ready: a slot that `relieves` another one is filled first.

(Over the usual length: the rules hold over all of it. What could be told apart is: place, policy, processes, forks, slots,
reload, replan, watch.)
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
from dataclasses import dataclass
from pathlib import Path

from embedpool import control
from embedpool.config import Config
from embedpool.lifeline import adopt_orphans
from embedpool.supervise import watch
from embedpool.supervise.forks import ForkFailed, Forks
from embedpool.supervise.gateways import Gateways, arguments
from embedpool.supervise.notify import Notify
from embedpool.supervise.place import Place
from embedpool.supervise.policy import LONGEST_WAIT_S, Restarts
from embedpool.supervise.processes import end, end_strays, record, spawn
from embedpool.supervise.reload import Reload
from embedpool.supervise.replan import Replan
from embedpool.supervise.slots import Generation, Slot
from embedpool.supervise.specs import router_spec, worker_spec
from embedpool.supervise.tracing import Tracing
from embedpool.worker.forkserver import Fork

log = logging.getLogger("embedpool.supervisor")

END_PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Programs:
    """The modules that run as children; tests put their own in place of the worker."""

    router: str = "embedpool.router"
    worker: str = "embedpool.worker"


class Supervisor:
    """Runs one pool. `on_ready` is called once, when the first answer could be given; `load` reads the configuration again."""

    def __init__(
        self,
        generation: Generation,
        place: Place,
        on_ready: Callable[[], None],
        load: Callable[[], Config] | None = None,
        gateways: Gateways | None = None,
    ) -> None:
        self.place = place
        self.programs = Programs()
        self.machine_root = Path("/")  # below which /proc and /sys show the machine; tests show another one
        self.owner_fd = -1  # the other end is held by the process that this pool belongs to; -1: to nobody
        self.serving = generation
        self.generations = [generation]  # those with a forkserver: the one that serves, one that is coming, one that goes
        self.router = Slot("router")
        self.workers = [generation.worker(index) for index in range(len(generation.plan.workers))]
        self.gateways = gateways
        self.tracing: Tracing | None = None
        self.selector = selectors.DefaultSelector()
        self.reload = Reload(self, load)
        self.replan = Replan(self)
        self.stop_at: float | None = None  # draining until then
        self.notify = Notify()  # nobody, until somebody else is put here
        self.was_ready = False
        self.failed = ""
        self._on_ready = on_ready
        self._link: socket.socket | None = None
        self._spawned = 0
        self._stopped = False

    @property
    def config(self) -> Config:
        return self.serving.config

    @property
    def is_stopping(self) -> bool:
        return self._stopped or self.stop_at is not None

    def run(self) -> int:
        """Returns the exit status: 0 after a clean stop, 1 when the pool failed."""
        adopt_orphans()
        self._lifeline, self._lifeline_end = os.pipe()
        wake, wake_end = socket.socketpair()
        for end_of in (wake, wake_end):
            end_of.setblocking(False)
        before = signal.set_wakeup_fd(wake_end.fileno(), warn_on_full_buffer=False)
        handlers = {n: signal.signal(n, lambda *_: None) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        self.selector.register(wake, selectors.EVENT_READ, self._signalled)
        if self.owner_fd >= 0:
            self.selector.register(self.owner_fd, selectors.EVENT_READ, self._owner_gone)
        try:
            while not self._stopped:
                self._start_what_is_due()
                for key, _ in self.selector.select(self._patience_s()):
                    key.data(key.fileobj)
                self._check_times()
        finally:
            self._end_all()
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for end_of in (wake, wake_end):
                end_of.close()
        if self.failed:
            log.error("the pool failed: %s", self.failed, extra={"event": "failed", "reason": self.failed})
        else:
            log.info("stopped", extra={"event": "stopped"})
        return 1 if self.failed else 0

    # ── starting ──

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.child is not None or slot.due_at is None or slot.due_at > now or self._stopped:
                continue
            if slot.is_worker and not _forkserver(slot).ready:
                continue
            slot.due_at, slot.ready, slot.killed_for, slot.stopped_at = None, False, "", None
            if slot is self.router:
                self._start_router()
            elif slot in self._gateways:
                self._start_gateway(slot)
            elif slot in self._tracers:
                self._start_tracer(slot)
            elif slot.is_worker:
                self._start_worker(slot)
            else:
                self._start_forkserver(slot)
            if slot.child is not None:
                self.selector.register(slot.child, selectors.EVENT_READ, lambda _, slot=slot: self._ended(slot))
                self._record()

    @property
    def _slots(self) -> tuple[Slot, ...]:
        forkservers = [generation.forkserver for generation in self.generations]
        return (self.router, *forkservers, *self.workers, *self._gateways, *self._tracers)

    @property
    def _gateways(self) -> list[Slot]:
        return self.gateways.slots if self.gateways is not None else []

    @property
    def _tracers(self) -> list[Slot]:
        return self.tracing.slots if self.tracing is not None else []

    def _start_router(self) -> None:
        ours, theirs = control.pair()
        with theirs:
            spec = router_spec(self.serving, self.place).to_json()
            fds = [theirs.fileno(), *(self.tracing.router_fds if self.tracing is not None else ())]
            self.router.child = spawn("router", self.programs.router, [spec, *map(str, fds)], fds)
        self._link = ours
        self.selector.register(ours, selectors.EVENT_READ, self._hear)
        self.say(self.reload.news)
        for slot in self.workers:
            if slot.leaving and slot.child is not None:
                slot.child.kill()  # what it had in hand is asked for again; the new router need not know it
            else:
                self._tell_of(slot)
        if self.failed:
            self.say(control.GivenUp(self.failed))
        if self.stop_at is not None:
            self._drain()

    def _start_gateway(self, slot: Slot) -> None:
        assert self.gateways is not None
        slot.child, ready = self.gateways.start(slot, self.config, self.serving.spec, self._lifeline)
        self._await_ready(slot, ready)

    def _start_tracer(self, slot: Slot) -> None:
        assert self.tracing is not None
        slot.child, ready = self.tracing.start(self.config, self._lifeline)
        self._await_ready(slot, ready)

    def _await_ready(self, slot: Slot, ready: int) -> None:
        """It is when a byte can be read from `ready`, which is closed then, or when it has ended."""

        def spoke(fd: int) -> None:
            self.selector.unregister(fd)
            slot.ready = slot.child is not None and os.read(fd, 1) == b"1"
            os.close(fd)
            if slot.ready:
                self._is_ready(slot, time.monotonic())
                self._first_ready()

        self.selector.register(ready, selectors.EVENT_READ, spoke)

    def renew_gateways(self, before: Generation) -> None:
        """Other settings, or another tokenizer: each gateway answers what it has accepted, and another one takes its place."""
        if arguments(before.config, before.spec) != arguments(self.config, self.serving.spec):
            for slot in self._gateways:
                slot.leaving = True
                if slot.child is not None:
                    slot.child.terminate()

    def _start_forkserver(self, slot: Slot) -> None:
        generation = slot.generation
        assert generation is not None
        ours, theirs = control.pair()
        with theirs:
            spec, fds = worker_spec(generation, self.place).to_json(), [theirs.fileno(), self._lifeline]
            slot.child = spawn("forkserver", self.programs.worker, [spec, *map(str, fds)], fds)
        generation.forks = Forks(ours)
        self.selector.register(generation.forks, selectors.EVENT_READ, lambda forks: self._forkserver_spoke(generation, forks))

    def _forkserver_spoke(self, generation: Generation, forks: Forks) -> None:
        """It is ready, or gone, of which its pidfd tells; from now on it is read only where it is asked."""
        if forks is not generation.forks:
            return  # it was lost in this very turn of the loop
        self.selector.unregister(forks)
        if forks.is_ready():
            generation.forkserver.ready = True
            generation.forkserver.restarts.ready(time.monotonic())

    def _start_worker(self, slot: Slot) -> None:
        generation = slot.generation
        assert generation is not None and generation.forks is not None
        self._spawned += 1
        slot.worker = self._spawned
        fork = Fork(slot.worker, slot.index, slot.cores)
        slot.record_fd = os.memfd_create("embedpool-worker", os.MFD_CLOEXEC)
        try:
            slot.child = generation.forks.fork(slot.name, fork, slot.record_fd)
        except ForkFailed as error:
            slot.take_record()
            slot.due_at = time.monotonic()
            generation.forkserver.ready = False  # until the next one is
            generation.forkserver.killed_for = str(error)
            if generation.forkserver.child is not None:
                generation.forkserver.child.kill()
            return
        self._tell_of(slot)

    def _tell_of(self, slot: Slot) -> None:
        if slot.child is not None and slot.generation is not None:
            model, total = slot.generation.spec.card(), slot.restarts.total
            self.say(control.Spawned(slot.worker, slot.index, slot.child.pid, slot.cores, total, model))

    def say(self, note: control.ToRouter) -> None:
        """To the router, if there is one: a new one is told all that matters."""
        if self._link is not None:
            control.say(self._link, note)

    def _record(self) -> None:
        record(self.place.record, self._children())

    def _children(self) -> list[int]:
        return [slot.child.pid for slot in self._slots if slot.child is not None]

    # ── what happens ──

    def _hear(self, link: socket.socket) -> None:
        self.router.heard_at = time.monotonic()
        try:
            for note in control.heard(link):
                self._heard(note)
        except EOFError:
            self.selector.unregister(link)
            link.close()
            if self._link is link:
                self._link = None

    def _heard(self, note: control.Note) -> None:
        now = time.monotonic()
        match note:
            case control.Alive():
                pass
            case control.Bound():
                self._is_ready(self.router, now)
            case control.CannotBind():
                self.router.killed_for = note.reason
            case control.WorkDone():
                self._stopped = True
            case control.WorkerJoined() | control.WorkerWaits() | control.WorkerRetired() | control.WorkerHung():
                slot = next((s for s in self.workers if s.worker == note.worker and s.child is not None), None)
                if slot is not None:
                    self._heard_of(slot, note, now)
            case _:
                log.error("a router does not say %s", type(note).__name__)

    def _heard_of(self, slot: Slot, note: control.ToSupervisor, now: float) -> None:
        assert slot.child is not None
        match note:
            case control.WorkerJoined():
                self._is_ready(slot, now)
                self._first_ready()
                self.reload.joined(slot)
                if slot.relieves is not None:
                    self.retire(slot.relieves)
            case control.WorkerWaits():
                self.reload.joined(slot)
            case control.WorkerRetired():
                slot.leaving = True
                slot.child.kill()
            case control.WorkerHung():
                slot.killed_for = note.reason
                slot.child.kill()

    def _is_ready(self, slot: Slot, now: float) -> None:
        assert slot.child is not None
        slot.ready = True
        slot.restarts.ready(now)
        ready = {"event": "ready", "child": slot.name, "child_pid": slot.child.pid, "restarts": slot.restarts.total}
        log.info("%s is ready (process %d)", slot.name, slot.child.pid, extra=ready)

    def _first_ready(self) -> None:
        serves = any(slot.ready for slot in self.workers) and all(slot.ready for slot in self._gateways)
        if serves and not self.was_ready:
            self.was_ready = True
            self._on_ready()

    def retire(self, slot: Slot) -> None:
        """It does what it has in hand, gets nothing more, and ends."""
        if slot.ready:
            slot.leaving = True
            self.say(control.Retire(slot.worker))
        else:
            self.discard(slot)

    def relieve(self, slot: Slot) -> None:
        """Another worker is started in its place, and it goes when that one is ready. Does nothing where one is on its way."""
        if not slot.leaving and self._relief_of(slot) is None and slot.index < len(self.serving.plan.workers):
            relief = self.serving.worker(slot.index, relieves=slot)
            relief.restarts.total = slot.restarts.total
            relief.replaced_at = time.monotonic()
            self.workers.append(relief)

    def _relief_of(self, slot: Slot) -> Slot | None:
        return next((other for other in self.workers if other.relieves is slot), None)

    def discard(self, slot: Slot) -> None:
        """A worker that has nothing in hand is ended, whether it runs or not."""
        slot.leaving, slot.due_at = True, None
        if slot.child is not None:
            slot.child.kill()
        else:
            self._left(slot)

    def _ended(self, slot: Slot) -> None:
        assert slot.child is not None
        self.selector.unregister(slot.child)
        how = slot.child.reap()
        reason = slot.ended = slot.killed_for or how
        pid, slot.child, slot.ready = slot.child.pid, None, False
        self._record()
        begun = slot.take_record()
        if self._stopped:
            return
        if slot.is_worker:
            self.say(control.Reaped(slot.worker, reason, begun))
        elif slot.generation is not None:
            self._lose_forks(slot.generation)
        if slot in self._gateways and self.stop_at is not None:
            self._drain()
            return
        ended: dict[str, object] = {"event": "ended", "child": slot.name, "child_pid": pid, "reason": reason}
        if slot.leaving or self._is_outdated(slot):
            log.info("%s has left (process %d)", slot.name, pid, extra=ended)
            self._left(slot)
            return
        alone = not any(other.ready for other in self.workers)
        wait_s = slot.restarts.ended(time.monotonic(), alone=alone)
        if slot.is_worker and _forkserver(slot).due_at is None and _forkserver(slot).child is None:
            wait_s = None  # there is nobody left who could start it
        if wait_s is None and slot in (*self._gateways, *self._tracers):
            wait_s = LONGEST_WAIT_S  # the pool serves without it
        if wait_s is None:
            log.error("%s ended (%s) on every try to start it", slot.name, reason, extra=ended)
            self._give_up(slot, reason)
        else:
            ended["again_in_s"] = wait_s
            log.warning("%s ended (%s): starting it again in %.1f s", slot.name, reason, wait_s, extra=ended)
            slot.due_at = time.monotonic() + wait_s

    def _is_outdated(self, slot: Slot) -> bool:
        """Whether another one is on its way in its place, or it is of a generation that does not serve any more."""
        relief = self._relief_of(slot)
        if relief is not None and relief.generation is self.serving:
            return True
        return slot.is_worker and slot.generation not in self.generations

    def _left(self, slot: Slot) -> None:
        """Its place is another one's now; or it is free for a worker of the generation that serves."""
        relief = self._relief_of(slot)
        if slot in self._gateways:
            slot.leaving, slot.due_at = False, time.monotonic()
        elif not slot.is_worker:
            self.generations = [each for each in self.generations if each.forkserver is not slot]
        elif relief is not None or slot.relieves is not None or slot.index >= len(self.serving.plan.workers):
            self.workers.remove(slot)
            if relief is not None:
                relief.relieves = None
        else:
            self.take_over(slot)

    def take_over(self, slot: Slot) -> None:
        """A worker of the generation that serves is started in this place, whatever kept one of the generation before away."""
        slot.generation, slot.cores = self.serving, self.serving.cores(slot.index)
        slot.leaving, slot.due_at, slot.restarts = False, time.monotonic(), Restarts(total=slot.restarts.total)
        self.failed = ""

    def _lose_forks(self, generation: Generation) -> None:
        if generation.forks is not None:
            with contextlib.suppress(KeyError):
                self.selector.unregister(generation.forks)
            generation.forks.close()
        generation.forks, generation.forkserver.ready = None, False
        end_strays([*self._children(), *self.reload.children()])

    def _give_up(self, slot: Slot, reason: str) -> None:
        if self.reload.failed_with(slot, reason):
            return
        if slot.relieves is not None:
            log.error("%s goes on: no other worker can be started in its place", slot.name)
            self.workers.remove(slot)
            return
        if slot.generation is not None and not slot.is_worker:
            for worker in self.workers:
                worker.due_at = None  # those that run go on; nobody can take their place
        others = [s for s in self.workers if s.child is not None or s.due_at is not None]
        if slot is not self.router and others:
            return  # the pool goes on with fewer workers
        self.failed = f"{slot.name} ended ({reason}) each time it was started"
        self.say(control.GivenUp(self.failed))
        if slot is self.router or not self.was_ready:
            self._stopped = True

    def _signalled(self, wake: socket.socket) -> None:
        for number in set(wake.recv(64)):
            if number != signal.SIGHUP or watch.terminal_is_gone():
                self._stop()
            elif self.stop_at is None:
                self.reload.asked()

    def _stop(self) -> None:
        if self.stop_at is not None or self._link is None or not self.was_ready:
            self._stopped = True  # the second signal, or nothing to drain
            return
        most_s = self.config.drain_s
        log.info("stopping: finishing what was accepted, at most %.0f s", most_s, extra={"event": "stopping"})
        self.stop_at = time.monotonic() + self.config.drain_s
        for slot in self._gateways:
            if slot.child is not None:
                slot.child.terminate()  # it answers what it has accepted, and ends
        self._drain()

    def _drain(self) -> None:
        """First the gateways, whose requests the pool still has to take, then the pool."""
        if all(slot.child is None for slot in self._gateways):
            self.say(control.Drain())

    def _owner_gone(self, _: object) -> None:
        self._stopped = True

    # ── time ──

    def _check_times(self) -> None:
        now = time.monotonic()
        if self.stop_at is not None and now >= self.stop_at:
            log.warning("stopping with requests open: they were not done within drain_s", extra={"event": "cut off"})
            self._stopped = True
        for slot in self._slots:
            reason = self._overdue(slot, now)
            if slot.child is not None and reason and not slot.killed_for:
                slot.killed_for = reason
                slot.child.kill()
        for slot in self.workers[:]:
            if watch.is_too_large(slot, self.config.max_worker_rss_mb, now):
                self.relieve(slot)
        self.reload.go_on()
        self.replan.go_on(now)
        self.notify.tell(watch.sight(self, now))

    def _overdue(self, slot: Slot, now: float) -> str:
        if slot is self.router:
            return watch.router_overdue(slot, self._link, self.config.hang_s, now)
        config = slot.generation.config if slot.generation is not None else self.config
        return watch.start_overdue(slot, config.start_timeout_s, config.hang_s, now)

    def _patience_s(self) -> float | None:
        now = time.monotonic()
        waiting = [slot for slot in self._slots if not slot.is_worker or _forkserver(slot).ready]
        due = [slot.due_at for slot in waiting if slot.due_at is not None and slot.child is None]
        if self.stop_at is not None:
            due.append(self.stop_at)
        if any(watch.needs_looking_at(slot, self.config.max_worker_rss_mb) for slot in self._slots):
            due.append(now + watch.LOOK_S)
        return max(0.0, min(due) - now) if due else None

    # ── the end ──

    def _end_all(self) -> None:
        """The router ends by itself when the link closes, having sent what is sent; workers have nothing to finish."""
        self.reload.close()
        if self._link is not None:
            self._link.close()
        forkservers = [generation.forkserver for generation in self.generations]
        if self.tracing is not None:
            self.tracing.close()  # it ends behind the router, when nobody can write a record any more
        slots = (*self._gateways, *forkservers, *self.workers, self.router, *self._tracers)
        end([slot.child for slot in slots if slot.child is not None], END_PATIENCE_S)
        for generation in self.generations:
            self._lose_forks(generation)
        for slot in self.workers:
            slot.take_record()
        for fd in (self._lifeline, self._lifeline_end):
            os.close(fd)
        self.selector.close()
        if self.gateways is not None:
            self.gateways.close()


def _forkserver(slot: Slot) -> Slot:
    assert slot.generation is not None
    return slot.generation.forkserver
