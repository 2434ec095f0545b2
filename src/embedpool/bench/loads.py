"""The loads as the measuring process sees them: started, told when to begin, read, and in any case ended."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from embedpool.bench import RunFailed
from embedpool.bench.drive import Sample
from embedpool.bench.load import CONNECT_S, BulkWork, Order, Queries
from embedpool.bench.texts import Texts
from embedpool.bench.workload import Workload, share

COMMAND = (sys.executable, "-P", "-m", "embedpool.bench.load")
LONGEST_BULK_S = 60.0  # of one request, at least
READY_WITHIN_S = CONNECT_S + 30.0
END_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """One process. `order` is what it was asked to do."""

    process: subprocess.Popen[str]
    order: Order

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> None:
        """Returns when it is connected. Raises RunFailed with what it says instead."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], READY_WITHIN_S)[0]:
            raise RunFailed(f"a load was not ready within {READY_WITHIN_S:.0f} s")
        if self.process.stdout.readline() != "ready\n":
            raise RunFailed(self._last_words())

    def begin(self, at: float) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `check` says so
            self.process.stdin.write(f"{at}\n")
            self.process.stdin.flush()

    def check(self) -> None:
        """Raises RunFailed if it has ended by a fault."""
        if self.process.poll():
            raise RunFailed(self._last_words())

    def saw(self, within_s: float) -> list[Sample]:
        """Waits for its end; what it saw. Raises RunFailed."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            failed = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise RunFailed(f"a load did not end within {within_s:.0f} s after its last request was due") from None
        if failed:
            raise RunFailed(self._last_words())
        return msgspec.msgpack.decode(Path(self.order.into).read_bytes(), type=list[Sample])

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        if self.process.poll() is None:
            return "a load said something else than that it is ready"
        assert self.process.stderr is not None
        said = self.process.stderr.read().strip().splitlines()
        return f"a load ended with status {self.process.returncode}: {said[-1] if said else 'it said nothing'}"

    def end(self) -> None:
        """Idempotent."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextmanager
def loads(endpoint: str, workload: Workload, texts: Texts, repeat: int) -> Iterator[list[Load]]:
    """The processes of one run, ready to begin; ended when the block is left in any way. Raises RunFailed."""
    with tempfile.TemporaryDirectory(prefix="embedpool-bench-") as directory, ExitStack() as stack:
        started = []
        for order in _orders(endpoint, workload, texts, repeat, Path(directory)):
            started.append(_start(order))
            stack.callback(started[-1].end)
        for load in started:
            load.wait_ready()
        yield started


def _start(order: Order) -> Load:
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(msgspec.json.encode(order).decode() + "\n")
        process.stdin.flush()
    return Load(process, order)


def _orders(endpoint: str, workload: Workload, texts: Texts, repeat: int, directory: Path) -> Iterator[Order]:
    """Every load has texts that no other one has: equal ones that wait together would be computed once for all."""
    lasting_s, parts = workload.warmup_s + workload.seconds, workload.processes + workload.bulk_clients
    for part in range(parts):
        is_query = part < workload.processes
        words = directory / f"texts-{part}.json"
        words.write_bytes(msgspec.json.encode(share(texts.queries if is_query else texts.documents, part, parts)))
        into = str(directory / f"saw-{part}.msgpack")
        if is_query:
            assert workload.rate is not None
            yield Queries(
                endpoint=endpoint,
                texts=str(words),
                into=into,
                timeout_s=workload.timeout_s,
                connections=workload.connections // workload.processes,
                rate=workload.rate,
                seconds=lasting_s,
                arrivals=workload.arrivals,
                seed=workload.seed * 1000 + repeat,  # the same repeat of another benchmark is asked at the same instants
                first=part,
                step=workload.processes,
            )
        else:
            timeout_s = max(LONGEST_BULK_S, workload.timeout_s)
            yield BulkWork(endpoint, str(words), into, timeout_s, workload.rows, lasting_s)


def wait_until(at: float, started: Sequence[Load], step_s: float = 0.2) -> Iterator[float]:
    """Waits for that instant of time.monotonic; gives the seconds passed at every step. Raises RunFailed if a load fails."""
    last = time.monotonic()
    while (left_s := at - time.monotonic()) > 0:
        time.sleep(min(step_s, left_s))
        for load in started:
            load.check()
        now = time.monotonic()
        yield now - last
        last = now
