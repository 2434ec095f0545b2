"""The router process: one poll loop that turns frames into events for the core, and carries its actions out.

The only ROUTER sockets of the project are here: one for clients, one for workers. No decision about a request is taken
here, no client is ever waited for, no model is loaded and no segment mapped. Ends when the supervisor does.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import socket
import time
from pathlib import Path

import zmq

from embedpool import control
from embedpool import protocol as wire
from embedpool.edge import descriptor
from embedpool.errors import Overloaded, ProtocolError
from embedpool.protocol import Refused
from embedpool.router import events as ev
from embedpool.router.core import Core
from embedpool.router.descriptors import Descriptors, limit_of
from embedpool.router.door import Door, open_descriptors
from embedpool.router.outlet import Outlet
from embedpool.router.sessions import Sessions
from embedpool.router.sockets import QUEUED_ANSWERS, UNREAD_REQUESTS, receive, router_socket, send
from embedpool.router.spec import RouterSpec
from embedpool.router.status import status
from embedpool.shm.sweep import sweep

log = logging.getLogger("embedpool.router")

READ_AT_ONCE = 256  # messages per socket and turn: bounds how long one busy peer keeps the others waiting
UPKEEP_S = control.ALIVE_S  # how often clients are looked at for having gone, and the supervisor hears of us
DOORS_S = 0.002  # how often doors are looked at while the loop never sleeps; a look costs 2 us


class Server:
    """Owns sockets, sessions and core. `run` returns when the supervisor's end of `link` is closed."""

    def __init__(self, spec: RouterSpec, link: socket.socket, outlet: Outlet | None = None) -> None:
        self.spec = spec
        self.link = link
        self.outlet = outlet
        self.id = int.from_bytes(os.urandom(6), "big")
        # Job numbers start at a random place: a worker's late answer to a router that died names no job of this one.
        self.core = Core(spec.model, spec.admission, self.id << 14, outlet.traces if outlet is not None else None)
        self.descriptors = Descriptors(_descriptors(spec), open_descriptors)
        self.doors: list[Door] = []
        self.sessions = Sessions(
            Path(spec.segments) if spec.segments else None,
            spec.max_sessions,
            spec.max_segment_bytes,
            spec.max_shm_bytes,
            spec.session_idle_s,
            lambda: self.descriptors.take(self.descriptors.for_workers),
        )
        self.spawned: dict[int, control.Spawned] = {}
        self.waiting: dict[int, wire.Ready] = {}  # said ready before the supervisor told of them
        self.reloaded = control.Reloaded(0, "none", "")
        self.started_at = time.monotonic()
        self._ended = False
        self._upkeep_at = 0.0
        self._doors_at = 0.0

    # ── the loop ──

    def run(self) -> None:
        if self.spec.segments:
            sweep(Path(self.spec.segments))  # those of a router that was killed: its sessions died with it
        if self.descriptors.for_sessions < self.spec.max_sessions:
            log.warning(
                "file descriptors for %d of max_sessions %d sessions: raise the limit of the process (ulimit -n, LimitNOFILE)",
                self.descriptors.for_sessions,
                self.spec.max_sessions,
            )
        context = zmq.Context()
        try:
            keep = self.descriptors.for_workers
            self.clients = self._bind(context, self.spec.endpoint, 0o660, self.spec.max_request_bytes, UNREAD_REQUESTS, keep)
            self.workers = self._bind(context, self.spec.workers_endpoint, 0o600, -1, QUEUED_ANSWERS, 0)
        except zmq.ZMQError as error:
            control.say(self.link, control.CannotBind(f"cannot listen on {self.spec.endpoint}: {error.strerror}"))
            return
        for door in self.doors:  # with all that is our own open: what is counted from here on is theirs
            door.open()
        control.say(self.link, control.Bound())
        try:
            self._loop()
        finally:
            self.sessions.close_all()
            if self.outlet is not None:
                self.outlet.flush()
            context.destroy(linger=200)
            for endpoint in (self.spec.endpoint, self.spec.workers_endpoint):
                if endpoint.startswith("ipc://"):
                    Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)

    def _bind(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, mode: int, most: int, unread: int, keep: int
    ) -> zmq.Socket[bytes]:
        sock = router_socket(context, most, unread)
        self.doors.append(Door(sock, self.descriptors, keep))
        old = os.umask(0o777 & ~mode)  # bind creates the socket with 0777 & ~umask: never more open than it will be
        try:
            self.doors[-1].listen(endpoint)
        finally:
            os.umask(old)
        return sock

    def _loop(self) -> None:
        poll = select.poll()
        doors = {descriptor(door.monitor): door for door in self.doors}
        for fd in (descriptor(self.workers), descriptor(self.clients), self.link.fileno(), *doors):
            poll.register(fd, select.POLLIN)
        while not self._ended:
            # ZeroMQ's descriptors are edge-triggered: only when both sockets were found empty may the loop sleep.
            # Workers first: an answer that has arrived counts before the news of its worker's death.
            while self._read_workers() + self._read_clients():
                self._keep_time()
            self.core.learn()
            self._keep_time()
            if time.monotonic() < self.core.awake_until:
                os.sched_yield()  # awake for the answer, but not in the way of the worker that computes it
                continue
            for fd, _ in poll.poll(self._patience_ms()):
                if fd == self.link.fileno():
                    self._read_link()
                elif fd in doors:
                    doors[fd].look()

    def _keep_time(self) -> None:
        now = time.monotonic()
        if now >= self._doors_at:
            self._doors_at = now + DOORS_S
            for door in self.doors:
                door.look()
        if now >= self._upkeep_at:
            self._upkeep(now)
        if self.outlet is not None:
            self.outlet.flush_full()
        due = self.core.next_deadline()
        if due is not None and due <= now:
            self._handle(ev.Tick())

    def _patience_ms(self) -> float:
        due = min(self._upkeep_at, self.core.next_deadline() or self._upkeep_at)
        return max(0.0, (due - time.monotonic()) * 1e3 + 0.5)

    def _handle(self, event: ev.Event) -> None:
        for action in self.core.handle(event, time.monotonic()):
            match action:
                case ev.SendJob():
                    send(self.workers, b"w%d" % action.worker, wire.encode(action.job))
                case ev.Reply():
                    if not send(self.clients, action.session, wire.encode(action.message), action.payload):
                        self._close(action.session, "it does not take its answers")
                case ev.Kill():
                    log.warning("worker hung: %s", action.reason, extra={"event": "hung", "worker": action.worker})
                    control.say(self.link, control.WorkerHung(action.worker, action.reason))
                case ev.Retired():
                    control.say(self.link, control.WorkerRetired(action.worker))
                case ev.Drained():
                    control.say(self.link, control.WorkDone())

    # ── clients ──

    def _read_clients(self) -> int:
        """How many messages were read: at most READ_AT_ONCE."""
        for n in range(READ_AT_ONCE):
            found = receive(self.clients)
            if found is None:
                return n
            sender, frame, _ = found
            try:
                message = wire.decode(frame) if frame else None
            except ProtocolError as error:
                refusal = Refused(error.request, error.code, error.message, row=error.row)
                send(self.clients, sender, wire.encode(refusal))
                continue
            self._from_client(sender, message, len(frame))
        return READ_AT_ONCE

    def _from_client(self, sender: bytes, message: wire.Message | None, nbytes: int) -> None:
        seat = self.sessions.seats.get(sender)
        if isinstance(message, wire.Hello):
            self._welcome(sender, message)
            return
        if isinstance(message, wire.AskStatus):
            body = json.dumps(status(self))
            send(self.clients, sender, wire.encode(wire.Status(message.id, body)))
            return
        if seat is None:
            if not isinstance(message, wire.Bye):
                send(self.clients, sender, wire.encode(wire.Who(self.id)))
            return
        seat.seen_at = time.monotonic()
        match message:
            case wire.Embed():
                self._handle(ev.Asked(sender, message, nbytes))
            case wire.Cancel():
                self._handle(ev.CancelAsked(sender, message.id))
            case wire.Ping():
                send(self.clients, sender, wire.encode(wire.Pong(message.id)))
            case wire.Bye():
                self._close(sender, "bye")
            case None:
                pass  # the probe of a connection that was made again: the session goes on
            case _:
                refusal = Refused(None, ProtocolError.code, f"a client does not send {type(message).__name__}")
                send(self.clients, sender, wire.encode(refusal))

    def _welcome(self, sender: bytes, hello: wire.Hello) -> None:
        self._close(sender, "hello again")
        try:
            warning = self.sessions.open(sender, hello, time.monotonic())
        except Overloaded as error:
            refusal = Refused(None, error.code, error.message, retryable=True, retry_after_ms=error.retry_after_ms)
            send(self.clients, sender, wire.encode(refusal))
            return
        segment = self.sessions.seats[sender].segment
        rules = self.spec.admission
        limits = wire.Limits(rules.max_request_rows, self.spec.max_request_bytes, rules.max_text_chars, rules.max_inline_bytes)
        path, size = (str(segment.path), segment.size) if segment else ("", 0)
        welcome = wire.Welcome(wire.VERSION, limits, (self.spec.model,), path, size, warning)
        self._handle(ev.Opened(sender, segment.name if segment else "", size))
        send(self.clients, sender, wire.encode(welcome))

    def _close(self, sender: bytes, reason: str) -> None:
        if sender not in self.sessions.seats:
            return
        name = self.sessions.close(sender)
        self._handle(ev.Closed(sender))
        log.debug("session closed: %s", reason)
        if name:
            for worker in self.core.workers:
                send(self.workers, b"w%d" % worker, wire.encode(wire.Forget((name,))))

    def _upkeep(self, now: float) -> None:
        self._upkeep_at = now + UPKEEP_S
        control.say(self.link, control.Alive())
        if self.outlet is not None:
            self.outlet.flush()
        busy = {key for key, session in self.core.sessions.items() if session.open}
        for key in self.sessions.gone(now, busy):
            self._close(key, "its client is gone")
        for door in self.doors:
            door.open()

    # ── workers ──

    def _read_workers(self) -> int:
        """How many messages were read: at most READ_AT_ONCE."""
        for n in range(READ_AT_ONCE):
            found = receive(self.workers)
            if found is None:
                return n
            sender, frame, payload = found
            number = int(sender[1:]) if sender[1:].isdigit() else 0
            try:
                message = wire.decode(frame) if frame else None
            except ProtocolError as error:
                control.say(self.link, control.WorkerHung(number, f"it does not speak the protocol: {error.message}"))
                continue
            if isinstance(message, wire.Done):
                self._handle(ev.Finished(number, message, payload))
            elif isinstance(message, wire.Ready):
                self.waiting[number] = message
                self._join(number)
            elif number not in self.core.workers:
                send(self.workers, sender, wire.encode(wire.Who(self.id)))
        return READ_AT_ONCE

    def _join(self, number: int) -> None:
        if number not in self.waiting or number not in self.spawned:
            return
        if self.spawned[number].model != self.spec.model:  # one of the next model: it waits for Switch
            control.say(self.link, control.WorkerWaits(number))
            return
        ready = self.waiting.pop(number)
        self._handle(ev.Joined(number, ready.unit_ms, self.spawned[number].index))
        control.say(self.link, control.WorkerJoined(number))

    # ── supervisor ──

    def _read_link(self) -> None:
        try:
            for note in control.heard(self.link):
                match note:
                    case control.Spawned():
                        self.spawned[note.worker] = note
                        self._join(note.worker)
                    case control.Reaped():
                        self._reaped(note)
                    case control.Retire():
                        self._retire(note.worker)
                    case control.Switch():
                        self._switch(note)
                    case control.Reloaded():
                        self.reloaded = note
                    case control.Drain():
                        self._handle(ev.DrainAsked())
                    case control.GivenUp():
                        self._handle(ev.Failed(note.reason))
                    case _:
                        log.error("the supervisor does not say %s", type(note).__name__)
        except EOFError:
            self._ended = True

    def _retire(self, number: int) -> None:
        if number in self.core.workers:
            self._handle(ev.RetireAsked(number))
        else:  # it has not joined this router, and has nothing in hand
            control.say(self.link, control.WorkerRetired(number))

    def _switch(self, note: control.Switch) -> None:
        """Sessions of another model end; the files go, the clients are asked who they are, and ask again what is open."""
        before, self.spec = self.spec, RouterSpec.from_json(note.spec)
        spec, sessions = self.spec, self.sessions
        sessions.most, sessions.max_bytes = spec.max_sessions, spec.max_segment_bytes
        sessions.total_bytes, sessions.idle_s = spec.max_shm_bytes, spec.session_idle_s
        self.descriptors.limit = _descriptors(spec)
        self._handle(ev.Switched(spec.model, spec.admission, note.relearn))
        if spec.model != before.model:
            self.id = int.from_bytes(os.urandom(6), "big")
            for key in list(sessions.seats):
                sessions.close(key)
                send(self.clients, key, wire.encode(wire.Who(self.id)))
        for number in list(self.waiting):
            self._join(number)

    def _reaped(self, note: control.Reaped) -> None:
        # Whatever the worker still sent lies in the socket by now: read it before its jobs are given out again.
        self._read_workers()
        self.spawned.pop(note.worker, None)
        self.waiting.pop(note.worker, None)
        self._handle(ev.Lost(note.worker, note.reason, note.begun))


def _descriptors(spec: RouterSpec) -> int:
    """How many this router may have open."""
    return limit_of(resource.getrlimit(resource.RLIMIT_NOFILE)[0], spec.max_sessions)
