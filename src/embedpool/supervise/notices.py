"""What a service manager is told of a pool, and when: sd_notify(3)'s assignments. Pure: `now` is an argument.

Rules
1. READY=1 once the first answer could be given, and again after each reload, which RELOADING=1 begins.
2. EXTEND_TIMEOUT_USEC for as long as something is under way that takes its time: a model is prepared, workers start, a reload
   runs, accepted work is finished. A pool that makes no progress asks for no more time once it has served.
3. WATCHDOG=1 only while the pool makes progress (watch.makes_progress). When it makes none, its children are replaced by the
   supervisor; where that does not help within the watchdog's time, or the supervisor itself is stuck, all is started anew.
4. STATUS is a sentence for people, and is sent when it has changed.
5. STOPPING=1 once, and nothing but STATUS and more time after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["preparing", "starting", "serving", "reloading", "stopping"]

EXTEND_EVERY_S = 5.0
EXTEND_BY_S = 30.0  # a machine that swaps may not get round to the next one for a while
STATUS_CHARS = 500  # `systemctl status` shows one line


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A pool as its supervisor sees it at one moment."""

    phase: Phase
    model: str
    endpoint: str = ""
    workers: int = 0
    ready: int = 0
    restarts: int = 0
    missing: str = ""  # why one of the workers that should serve does not, "" if all do
    failed: str = ""  # why the pool answers nothing any more
    not_reloaded: str = ""  # why the last reload changed nothing
    progress: bool = True
    stops_within_s: float = 0.0


class Notices:
    """Of one service. `watchdog_s` 0: nobody watches."""

    def __init__(self, watchdog_s: float) -> None:
        self._watchdog_s = watchdog_s
        self._phase: Phase | None = None
        self._status = ""
        self._extended_at = self._fed_at = float("-inf")

    def due(self, sight: Sight, now: float) -> list[str]:
        """The assignments to be sent now, in one message; often none."""
        lines = self._of_change(sight, now)
        if self._asks_for_time(sight, now):
            self._extended_at = now
            lines.append(f"EXTEND_TIMEOUT_USEC={_usec(EXTEND_BY_S + sight.stops_within_s)}")
        if self._is_fed(sight, now):
            self._fed_at = now
            lines.append("WATCHDOG=1")
        said = status(sight)
        if said != self._status:
            self._status = said
            lines.append(f"STATUS={said}")
        return lines

    def _of_change(self, sight: Sight, now: float) -> list[str]:
        before, self._phase = self._phase, sight.phase
        if before == sight.phase:
            return []
        self._extended_at = float("-inf")  # of the phase before: this one asks for its own
        match sight.phase:
            case "serving":
                return ["READY=1"]
            case "reloading":
                return ["RELOADING=1", f"MONOTONIC_USEC={_usec(now)}"]
            case "stopping":
                return ["STOPPING=1"]
        return []

    def _asks_for_time(self, sight: Sight, now: float) -> bool:
        if sight.phase == "serving" or (sight.phase == "reloading" and not sight.progress):
            return False
        return now - self._extended_at >= EXTEND_EVERY_S

    def _is_fed(self, sight: Sight, now: float) -> bool:
        if not self._watchdog_s or not sight.progress or sight.phase not in ("serving", "reloading"):
            return False
        return now - self._fed_at >= self._watchdog_s / 2  # sd_watchdog_enabled(3) recommends half


def status(sight: Sight) -> str:
    """The pool in one line, as `systemctl status` shows it."""
    ready = f"{sight.ready} of {sight.workers} workers ready"
    match sight.phase:
        case "preparing":
            said = f"preparing {sight.model}: a download or a conversion may take minutes"
        case "starting":
            said = f"starting {sight.model}: {ready}"
        case "stopping":
            said = f"stopping: finishing what was accepted, at most {sight.stops_within_s:.0f} s"
        case "serving" | "reloading":
            said = f"serving {sight.model} at {sight.endpoint}: {ready}"
    if sight.failed:
        said = f"failed, no request is answered: {sight.failed}"
    for fact in (
        f"{sight.restarts} restarts" if sight.restarts > 1 else "1 restart" if sight.restarts else "",
        sight.missing,
        "reloading" if sight.phase == "reloading" else "",
        f"the last reload changed nothing: {sight.not_reloaded}" if sight.not_reloaded else "",
    ):
        said += f"; {fact}" if fact and sight.phase != "stopping" else ""
    return " ".join(said.split())[:STATUS_CHARS]


def _usec(seconds: float) -> int:
    return int(seconds * 1e6)
