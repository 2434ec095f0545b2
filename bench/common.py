"""What every bench script shares: the machine, percentiles, and the result file."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from embedpool.supervise.power import power_mode

if TYPE_CHECKING:
    import numpy as np

    from embedpool import AsyncClient, Pool
    from embedpool.models.encoder import OnnxEncoder

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("embedpool", "onnxruntime", "numpy", "pyzmq", "msgpack", "tokenizers")


def machine() -> dict[str, Any]:
    """The processor, cores, kernel and versions that a number belongs to."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")) and not model:
            model = line.partition(":")[2].strip()
    return {
        "processor": ", power mode ".join(filter(None, (model or platform.processor(), power_mode(Path("/"))))),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The commit that was measured, with "+" where the tree had changes."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    # Result files and rendered pages are written by the runs themselves: they are no change to what is measured.
    what = ["--", ":/", ":!results", ":!README.md", ":!../README.md"]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", *what], cwd=here, check=False).returncode
    return found.stdout.strip() + ("+" if changed else "")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is not below `percent` per cent of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def write(name: str, scenario: str, results: dict[str, Any]) -> None:
    """Writes results/NAME.json; `scenario` says between which two instants the time is taken."""
    RESULTS.mkdir(exist_ok=True)
    found = {
        "name": name,
        "scenario": scenario,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    json.dump(results, sys.stdout, indent=2)
    print(f"\nwritten to {path}")


def encoder_of(model: str, **wanted: Any) -> OnnxEncoder:
    """What a worker computes with, in this process; the model is prepared if it is not yet."""
    from embedpool.config import Config
    from embedpool.models.artifact import prepare
    from embedpool.models.encoder import OnnxEncoder, load_tokenizer
    from embedpool.models.resolve import Wanted, resolve

    cache = Path(wanted.get("cache") or Config().cache_path())
    spec = prepare(resolve(Wanted(model, **wanted)), cache).spec
    return OnnxEncoder(spec, 1, load_tokenizer(spec))


def wait_for_workers(pool: Pool, count: int) -> list[int]:
    """Returns when so many workers take jobs; their process ids."""
    while True:
        ready = [worker["pid"] for worker in json.loads(pool.status())["workers"] if worker["state"] in ("idle", "busy")]
        if len(ready) >= count:
            return ready
        time.sleep(0.005)


def all_computed(pool: Pool) -> None:
    """Raises if a text was computed once for several requests: that is not what is measured here."""
    alike = json.loads(pool.status(timeout_s=30))["counters"]["alike"]
    if alike:
        raise RuntimeError(f"{alike} texts were equal to others that waited or ran: they cost nothing")


# ── what processes use ───────────────────────────────────────────────────────────────────────────────────────────────


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time of these processes so far, all their threads (proc_pid_stat(5): utime and stime, in ticks of 10 ms)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """Processor time of the whole machine so far, with what the host took from it (proc_stat(5): all but idle and iowait)."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Neighbours:
    """How many cores all but these processes and this one use, from now on: a number from a busy machine is another number."""

    def __init__(self, ours: Iterable[int]) -> None:
        self._ours = [*ours, os.getpid()]
        self._at, self._used_s, self._busy_s = time.monotonic(), cpu_s(self._ours), busy_s()

    def cores(self) -> float:
        """Until now."""
        others_s = busy_s() - self._busy_s - (cpu_s(self._ours) - self._used_s)
        return round(others_s / (time.monotonic() - self._at), 2)


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sleep_until(at: float) -> None:
    """Returns at that instant of time.monotonic, at once if it has passed."""
    time.sleep(max(0.0, at - time.monotonic()))


# ── load from processes of their own ─────────────────────────────────────────────────────────────────────────────────


class Load:
    """A process that makes load: the script that asks for it, once more, with `--load` and what it is to do as JSON.

    It says `ready` when it is connected, is told the instant at which to begin (time.monotonic is one clock for all
    processes), and leaves what it saw in a file.
    """

    def __init__(self, script: str, directory: Path, **order: Any) -> None:
        fd, path = tempfile.mkstemp(".npz", dir=directory)
        os.close(fd)
        self.path = Path(path)
        self.order = json.dumps(order | {"path": path})
        command = [sys.executable, script, "--load", self.order]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> Self:
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"load {self.order} ended before it began, with status {self.process.wait(10)}")
        return self

    def begin(self, at: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{at}\n")
        self.process.stdin.flush()

    def saw(self, within_s: float) -> dict[str, np.ndarray]:
        """Waits for its end; what it has saved. Raises where it failed: a failed run is an error, never a zero."""
        import numpy as np

        if self.process.wait(within_s):
            raise RuntimeError(f"load {self.order} failed with status {self.process.returncode}")
        with np.load(self.path) as file:
            return dict(file)

    def end(self) -> None:
        """Ends it, if it has not ended; idempotent."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def loads(script: str, orders: Sequence[dict[str, Any]]) -> Iterator[list[Load]]:
    """These loads, ready to begin; ended when the block is left in any way."""
    with tempfile.TemporaryDirectory(prefix="embedpool-bench-") as directory:
        started = [Load(script, Path(directory), **order) for order in orders]
        try:
            yield [load.wait_ready() for load in started]
        finally:
            for load in started:
                load.end()


def told_to_begin() -> float:
    """In a load: says that it is ready; the instant at which it is to begin. From here on it ends when its script ends."""
    from embedpool.lifeline import die_with_parent

    die_with_parent()
    gc.collect()
    gc.freeze()  # a collection that walks all that was imported would count as latency
    print("ready", flush=True)
    return float(sys.stdin.readline())


# ── open loop ────────────────────────────────────────────────────────────────────────────────────────────────────────


def arrivals(per_s: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the beginning, of a Poisson process: independent users; the same for the same seed."""
    rng, found, at = random.Random(seed), list[float](), 0.0
    while (at := at + rng.expovariate(per_s)) < seconds:
        found.append(at)
    return found


def run_open_loop(
    endpoint: str,
    clients: int,
    due_s: Sequence[float],
    ask: Callable[[AsyncClient, int], Awaitable[str]],
    path: str,
) -> None:
    """In a load: starts request i at due_s[i] after the beginning, whatever became of those before it; `ask` gives its outcome.

    Saves per request `due_s`, `ms` (from the instant it was due, not from when it could be sent: waiting of the load itself
    counts), `lag_ms` (how much of that was the load's own) and `outcome` ("done", an error's code, or see `outcome_of`); and
    `cpu_s` of the process. Requests go to the clients in turns.
    """
    import numpy as np

    from embedpool import AsyncClient
    from embedpool.errors import EmbedpoolError

    ms, lag_ms, outcome = np.zeros(len(due_s)), np.zeros(len(due_s)), [""] * len(due_s)

    async def one(pool: AsyncClient, i: int, at: float) -> None:
        lag_ms[i] = (time.monotonic() - at) * 1e3
        try:
            outcome[i] = await ask(pool, i)
        except EmbedpoolError as error:
            outcome[i] = outcome_of(error)
        ms[i] = (time.monotonic() - at) * 1e3

    async def all_of_them() -> float:
        pools = [AsyncClient(endpoint, segment_bytes=4 << 20) for _ in range(clients)]
        for pool in pools:
            await pool.model(timeout_s=30)
        began_at, used_s = told_to_begin(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for i, due in enumerate(due_s):
                await asyncio.sleep(max(0.0, began_at + due - time.monotonic()))
                group.create_task(one(pools[i % clients], i, began_at + due))
        used_s = time.process_time() - used_s
        for pool in pools:
            await pool.close()
        return used_s

    # asyncio's usual selector, epoll, counts in whole milliseconds: requests would start up to one late.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        used_s = runner.run(all_of_them())
    np.savez(path, due_s=np.array(due_s), ms=ms, lag_ms=lag_ms, outcome=np.array(outcome, "U32"), cpu_s=used_s)


def outcome_of(error: Any) -> str:
    """The error's code; but "no_answer" where the client stopped waiting (the pool's own word is "expired"), and another name
    for a refusal that does not say when to ask again."""
    if error.code == "expired" and error.message.startswith("no answer in time"):
        return "no_answer"
    if error.code == "overloaded" and not error.retry_after_ms:
        return "overloaded_without_retry_after"
    return str(error.code)


def in_ms(values: Iterable[float]) -> dict[str, float]:
    """Percentiles and the most, of milliseconds."""
    ms = [float(value) for value in values]
    found = {f"p{percent}": percentile(ms, percent) for percent in (50, 95, 99)} | {"max": max(ms)}
    return {name: round(value, 2) for name, value in found.items()}
