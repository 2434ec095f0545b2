"""One visit to one peer: a fresh process, everything that is measured of it, and its end. Nothing waits without a limit.

What goes wrong is a Missing with the peer's own words; the process and all that it started are gone afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common import arrivals
from embedpool.memory import pss_bytes
from peers_install import SCRIPTS, Missing, last_words
from peers_table import Peer

START_S = 120.0
FIRST_START_S = 600.0  # the pool prepares a model
ANSWER_S = 120.0
END_S = 15.0
SAMPLE_S = 0.2  # of memory
BULK_S = 2.0
WARM_TEXTS = 16
ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


@dataclass(frozen=True)
class Work:
    """What every peer is asked. `documents` are embedded to try batch sizes; then as many of `further` as take BULK_S by the
    best of them, for a short time says more of the last batch than of the rate. `cores` limits all its processes."""

    documents: list[str]
    further: list[str]
    queries: list[str]
    cores: int
    query_s: float
    open_s: float
    per_s: float


@dataclass
class Seen:
    """One visit's numbers: `bulk_texts` were embedded in `bulk_s`. Of the first visit `tried` (seconds by batch size), `pss_mb`
    and the vectors."""

    start_s: float = 0.0
    bulk_s: float = 0.0
    bulk_texts: int = 0
    query_ms: list[float] = field(default_factory=list)
    open_ms: list[float] = field(default_factory=list)
    beside_ms: list[float] = field(default_factory=list)
    beside_texts_per_s: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    tried: dict[int, float] = field(default_factory=dict)
    pss_mb: float = 0.0
    vectors: np.ndarray | None = None


class Script:
    """A peer's script as a process. Use it as a context: it ends with the block."""

    def __init__(self, python: str, peer: Peer, order: dict[str, Any], directory: Path) -> None:
        self.began_at = time.monotonic()
        self._name = peer.name
        self._log = tempfile.TemporaryFile("w+", dir=directory)  # noqa: SIM115 - closed by __exit__
        self._rest = b""
        environ = {**os.environ, **ENVIRON}
        self.process = subprocess.Popen(
            [python, str(SCRIPTS / f"{peer.script}.py"), json.dumps({**order, **peer.options})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environ,
            cwd=directory,
            start_new_session=True,
        )

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *_: object) -> None:
        everything = {pid: _started(pid) for pid in descendants(self.process.pid)}
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.tell(do="end")
            self.process.wait(END_S)
        self.process.kill()  # nothing, if it has ended
        for pid, started in everything.items():
            with contextlib.suppress(ProcessLookupError):
                if started and _started(pid) == started:  # the number may be another process's by now
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self._log):
            with contextlib.suppress(OSError):
                file.close()  # type: ignore[union-attr]

    def tell(self, **request: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, within_s: float) -> dict[str, Any]:
        """Its next line. Raises Missing where it says an error, ends, or says nothing in time."""
        assert self.process.stdout is not None
        deadline_at = time.monotonic() + within_s
        while b"\n" not in self._rest:
            if not select.select([self.process.stdout], [], [], max(0.0, deadline_at - time.monotonic()))[0]:
                raise Missing(f"no answer within {within_s:g} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise Missing(f"it ended: {self._last_words()}")
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(text)
        if "error" in found:
            raise Missing(f"{found['error'][:200]} ({self._last_words()})")
        return found

    def ask(self, within_s: float = ANSWER_S, **request: Any) -> dict[str, Any]:
        try:
            self.tell(**request)
        except OSError:
            raise Missing(f"it ended: {self._last_words()}") from None
        return self.hear(within_s)

    def _last_words(self) -> str:
        self._log.seek(0)
        return last_words(self._log.read())


def _started(pid: int) -> str:
    """When it began, in ticks since the start of the machine (proc_pid_stat(5), field 22); "" if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def descendants(pid: int) -> list[int]:
    """Process ids of all that a process has started, and what those have."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, pending = [], [pid]
    while pending:
        children = parents.get(pending.pop(), [])
        found += children
        pending += children
    return found


@contextlib.contextmanager
def memory_of(script: Script, server: bool) -> Iterator[list[float]]:
    """The most PSS in MB, as the list's only entry when the block is left; of a server without its client, the script."""
    seen, ended = [0.0], threading.Event()

    def sample() -> None:
        while True:
            over = ended.wait(SAMPLE_S)  # once more when it is over: it may have been shorter than this
            pids = [*descendants(script.process.pid), *([] if server else [script.process.pid])]
            seen[0] = max(seen[0], sum(map(pss_bytes, pids)) / 1e6)
            if over:
                return

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


# ── one visit ────────────────────────────────────────────────────────────────────────────────────────────────────────


def visit(python: str, peer: Peer, order: dict[str, Any], work: Work, tried: dict[int, float], seed: int, place: Path) -> Seen:
    """Everything of one peer, once. If none were `tried`, batch sizes are, and memory and vectors looked at. Raises Missing."""
    seen = Seen(tried=dict(tried))
    with Script(python, peer, order, place) as script:
        ready = script.hear(START_S)["ready"]
        script.ask(do="queries", texts=work.queries[:1], seconds=0.0)
        seen.start_s = time.monotonic() - script.began_at
        seen.versions = ready["versions"]
        script.ask(do="queries", texts=work.queries, seconds=0.2)
        seen.query_ms = script.ask(do="queries", texts=work.queries, seconds=work.query_s)["ms"]
        if not seen.tried:
            _trial(script, peer, work, seen, place)
        batch = min(seen.tried, key=lambda size: seen.tried[size])
        warm(script, work, batch)
        texts = work.further[: max(len(work.documents), round(len(work.documents) * BULK_S / seen.tried[batch]))]
        seen.bulk_texts, seen.bulk_s = len(texts), script.ask(do="embed", texts=texts, batch=batch, path="")["seconds"]
        if peer.server:
            _under_load(script, python, peer, {**order, "endpoint": ready["endpoint"]}, work, batch, seed, seen, place)
    return seen


def start_once(python: str, peer: Peer, order: dict[str, Any], place: Path) -> None:
    """So that what a peer makes at its very first start is there. Raises Missing."""
    with Script(python, peer, order, place) as script:
        script.hear(FIRST_START_S)


def warm(script: Script, work: Work, batch: int) -> None:
    script.ask(do="embed", texts=work.documents[:: max(1, len(work.documents) // WARM_TEXTS)], batch=batch, path="")


def _trial(script: Script, peer: Peer, work: Work, seen: Seen, place: Path) -> None:
    """All of the peer's batch sizes. Sampling memory costs the same in each."""
    path = place / "vectors.npy"
    for batch in peer.batches:
        warm(script, work, batch)
        with memory_of(script, peer.server) as memory:
            asked = script.ask(do="embed", texts=work.documents, batch=batch, path=str(path))
        seen.tried[batch], seen.pss_mb = asked["seconds"], max(seen.pss_mb, memory[0])
        if asked["seconds"] <= min(seen.tried.values()):
            seen.vectors = np.load(path)


def _under_load(
    script: Script,
    python: str,
    peer: Peer,
    order: dict[str, Any],
    work: Work,
    batch: int,
    seed: int,
    seen: Seen,
    place: Path,
) -> None:
    due_s = arrivals(work.per_s, work.open_s, seed)
    seen.open_ms = script.ask(do="open", texts=work.queries, due_s=due_s)["ms"]
    with Script(python, peer, order, place) as bulk:
        bulk.hear(START_S)
        warm(bulk, work, batch)
        bulk.tell(do="repeat", texts=_rest(work), batch=batch, seconds=work.open_s + 0.5)
        time.sleep(0.5)  # the server's queue is full by then
        seen.beside_ms = script.ask(do="open", texts=work.queries, due_s=due_s)["ms"]
        found = bulk.hear(ANSWER_S)
        seen.beside_texts_per_s = found["texts"] / found["seconds"]


def _rest(work: Work) -> Sequence[str]:
    """Documents of a second or so at a time, so that the load ends soon after its time."""
    return work.documents[:: max(1, len(work.documents) // 64)]
