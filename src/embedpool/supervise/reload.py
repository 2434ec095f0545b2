"""A reload: from a new configuration to a pool that serves it, without a moment in which nobody serves.

    asked → configuration read → model resolved (a child) → its forkserver started → one worker of it ready → switched
          → the other workers replaced → done

Up to the switch nothing that serves is touched, and whatever fails leaves it as it was, with the reason in log and status.
Workers of the same model replace the old ones one by one. Where the model is another one, there is one instant for all: the
router ends every session, clients say hello again and repeat what is open, and the old workers go with what they had in hand.
"""

from __future__ import annotations

import logging
import selectors
from collections.abc import Callable
from typing import TYPE_CHECKING

from embedpool import control
from embedpool.config import Config
from embedpool.errors import ConfigError, EmbedpoolError, ModelError
from embedpool.supervise.replan import planned
from embedpool.supervise.resolving import Resolving
from embedpool.supervise.slots import Generation, Slot
from embedpool.supervise.specs import router_spec

if TYPE_CHECKING:
    from embedpool.supervise.supervisor import Supervisor

log = logging.getLogger("embedpool.supervisor")


class Reload:
    """Of one supervisor. `load` reads the configuration as at the start; None: there is nothing to read again."""

    def __init__(self, supervisor: Supervisor, load: Callable[[], Config] | None) -> None:
        self.news = control.Reloaded(0, "none", "")
        self._supervisor = supervisor
        self._load = load
        self._resolving: Resolving | None = None
        self._coming: Generation | None = None
        self._again = False

    def asked(self) -> None:
        """SIGHUP. One that comes during a reload is served after it."""
        if self.news.state == "running":
            self._again = True
            return
        self._tell("running", "")
        try:
            self._begin()
        except EmbedpoolError as error:
            self._fail(error.message)
        except OSError as error:
            self._fail(f"no process could be started: {error.strerror}")

    def _begin(self) -> None:
        config = self._load() if self._load is not None else self._supervisor.config
        fixed, wanted = _fixed(self._supervisor.config), _fixed(config)
        for name in fixed:
            if wanted[name] != fixed[name]:
                raise ConfigError(
                    f"{name} cannot be changed from {fixed[name]} to {wanted[name]} by a reload: restart the pool"
                )
        log.info("reloading: finding %s", config.model, extra={"event": "reloading", "model": config.model})
        self._resolving = Resolving(config)
        self._supervisor.selector.register(self._resolving, selectors.EVENT_READ, self._resolved)

    def _resolved(self, resolving: Resolving) -> None:
        self._supervisor.selector.unregister(resolving)
        self._resolving = None
        try:
            spec = resolving.spec()
        except ModelError as error:
            self._fail(error.message)
            return
        config = resolving.config
        self._coming = Generation(config, spec, planned(config, self._supervisor.machine_root))
        self._supervisor.generations.append(self._coming)
        first = next((slot for slot in self._supervisor.workers if slot.index == 0), None)
        self._supervisor.workers.append(self._coming.worker(0, relieves=first))

    def joined(self, slot: Slot) -> None:
        """A worker is ready; if it is the first of the new ones, they take over."""
        if self._coming is not None and slot.generation is self._coming:
            self._switch(self._coming)

    def _switch(self, coming: Generation) -> None:
        supervisor, self._coming = self._supervisor, None
        old, supervisor.serving = supervisor.serving, coming
        supervisor.renew_gateways(old)
        relearn = old.config.threads_per_worker != coming.config.threads_per_worker
        supervisor.say(control.Switch(router_spec(coming, supervisor.place).to_json(), relearn))
        old.forkserver.leaving = True
        if old.forkserver.child is not None:
            old.forkserver.child.kill()
        else:
            supervisor.generations.remove(old)
        if old.spec.card() != coming.spec.card():
            for slot in supervisor.workers:
                if slot.generation is not coming:
                    supervisor.retire(slot)
        for index in range(1, len(coming.plan.workers)):
            if all(slot.index != index for slot in supervisor.workers):
                supervisor.workers.append(coming.worker(index))
        switched = {"event": "switched", "model": coming.spec.name}
        log.info("reloaded: %s serves, the other workers follow", coming.spec.name, extra=switched)

    def go_on(self) -> None:
        """The next worker is replaced when the one before is; called after everything that happens."""
        supervisor = self._supervisor
        if self.news.state != "running" or self._resolving is not None or self._coming is not None:
            return
        old = [slot for slot in supervisor.workers if slot.generation is not supervisor.serving]
        for slot in old:
            if slot.index >= len(supervisor.serving.plan.workers) and not slot.leaving:
                supervisor.retire(slot)
            elif slot.child is None and not slot.leaving:
                supervisor.take_over(slot)
        if not old and all(slot.ready and slot.relieves is None for slot in supervisor.workers):
            self._tell("done", "")
            model, count = supervisor.serving.spec.name, len(supervisor.workers)
            log.info("reload done: %d workers of %s", count, model, extra={"event": "reloaded", "model": model})
        elif old and all(slot.ready and not slot.leaving and slot.relieves is None for slot in supervisor.workers):
            supervisor.relieve(old[0])

    def failed_with(self, slot: Slot, reason: str) -> bool:
        """Whether a child that cannot be started is one of the new configuration, which is given up then."""
        if self._coming is None or slot.generation is not self._coming:
            return False
        self._fail(f"{slot.name} ended ({reason}) each time it was started")
        return True

    def _fail(self, reason: str) -> None:
        not_reloaded = {"event": "not reloaded", "reason": reason}
        log.error("not reloaded, everything goes on as before: %s", reason, extra=not_reloaded)
        if self._coming is not None:
            coming, self._coming = self._coming, None
            coming.forkserver.leaving = True
            if coming.forkserver.child is not None:
                coming.forkserver.child.kill()
            else:
                self._supervisor.generations.remove(coming)
            for slot in [slot for slot in self._supervisor.workers if slot.generation is coming]:
                self._supervisor.discard(slot)
        self._tell("failed", reason)

    def _tell(self, state: str, reason: str) -> None:
        ended = state in ("done", "failed")
        self.news = control.Reloaded(self.news.count + ended, state, reason[:4000])  # type: ignore[arg-type]
        self._supervisor.say(self.news)
        if ended and self._again:
            self._again = False
            self.asked()

    def children(self) -> list[int]:
        """Processes that are not in any slot."""
        return [self._resolving.pid] if self._resolving is not None else []

    def close(self) -> None:
        if self._resolving is not None:
            self._supervisor.selector.unregister(self._resolving)
            self._resolving.close()
            self._resolving = None


def _fixed(config: Config) -> dict[str, object]:
    """What a router that runs cannot change: where it listens, how long a message its socket takes, how it logs, its tracer."""
    return {
        "endpoint": config.endpoint_url(),
        "runtime_dir": str(config.runtime_path()),
        "max_request_bytes": config.max_request_bytes,
        "http": config.http,
        "grpc": config.grpc,
        "http_workers": config.http_workers,
        "log_format": config.log_format,
        "traces": config.traces,
    }
