"""`serve` from configuration to exit status: what the command line and a private pool both run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from embedpool.config import Config, is_tmpfs
from embedpool.models.spec import ModelSpec
from embedpool.supervise.cores import CorePlan
from embedpool.supervise.gateways import Gateways
from embedpool.supervise.notices import Sight
from embedpool.supervise.notify import Notify
from embedpool.supervise.place import Place, enter
from embedpool.supervise.replan import planned
from embedpool.supervise.resolving import Resolving
from embedpool.supervise.slots import Generation
from embedpool.supervise.supervisor import Programs, Supervisor
from embedpool.supervise.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Started:
    """What is known once the first answer could be given."""

    endpoint: str
    model: ModelSpec
    plan: CorePlan
    http: str
    grpc: str


def serve(
    config: Config,
    on_ready: Callable[[Started], None],
    warn: Callable[[str], None],
    owner_fd: int = -1,
    programs: Programs | None = None,
    load: Callable[[], Config] | None = None,
    notify: Notify | None = None,
    machine_root: Path = Path("/"),
) -> int:
    """Runs a pool until it is told to stop; returns the exit status.

    Raises ConfigError, AlreadyRunning and ModelError before any worker is started. SIGTERM and SIGINT stop it: with a drain
    once it serves, at once before. SIGHUP has it serve what `load` gives then (supervise.reload). `owner_fd` ends it when the
    other end is closed. `notify` is told how things stand, from the first moment on. /proc and /sys of the machine are read
    below `machine_root`.
    """
    stop, notify = _Stop(), notify or Notify()
    preparing = Sight(phase="preparing", model=config.model)
    with (
        stop.installed(),
        _place(config, stop) as place,
        closing(Tracing(config)) as tracing,
        closing(Gateways(config, warn)) as gateways,
    ):
        notify.tell(preparing)
        model = Resolving(config).spec(lambda: notify.tell(preparing))
        if place.found:
            warn(place.found)
        if config.endpoint_url().startswith("ipc://") and not is_tmpfs(place.path):
            warn(f"{place.path} is not on a tmpfs: shared memory there is written to disk; choose another --runtime-dir")
        cores = planned(config, machine_root)
        started = Started(config.endpoint_url(), model, cores, gateways.url, gateways.grpc_url)
        supervisor = Supervisor(Generation(config, model, cores), place, lambda: on_ready(started), load, gateways)
        supervisor.owner_fd, supervisor.notify, supervisor.machine_root = owner_fd, notify, machine_root
        supervisor.tracing = tracing
        supervisor.programs = programs or Programs()
        return supervisor.run()


class _Stop:
    """The handler of SIGTERM and SIGINT before the supervisor's loop runs: ends the process by the same path as an exception,
    but never in the middle of what is `held`. (A signal mask would not do: libraries' threads take signals too.)"""

    def __init__(self) -> None:
        self._holding = False
        self._asked = False

    def __call__(self, *_: object) -> None:
        if not self._holding:
            raise SystemExit(0)
        self._asked = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is done here is done whole: a signal takes effect behind it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._asked:
            raise SystemExit(0)

    @contextmanager
    def installed(self) -> Iterator[None]:
        before = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: None)  # nothing serves yet that could be reloaded
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _place(config: Config, stop: _Stop) -> Iterator[Place]:
    place: Place | None = None
    try:
        with stop.held():
            place = enter(config.runtime_path(), config.endpoint_url())
        yield place
    finally:
        if place is not None:
            with stop.held():
                place.leave()
