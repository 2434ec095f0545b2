"""Replacing what runs, while it runs: a reload, a worker that grew too large, one that is stopped before it ever served.

Clients are asking all the time; none of them may see an error, and every answer is of one model or the other, whole.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

from embedpool import Client, Pool, errors
from tests.faults.test_table import ready_workers, state, with_workers
from tests.support import (
    COMMAND,
    Server,
    alive,
    children,
    forkserver_of,
    kill,
    part,
    read_line,
    router_of,
    same,
    serving,
    wait_until,
    workers_of,
)


class Asking:
    """Threads that ask for short texts, one after the other, until they are told to stop; what they got."""

    def __init__(self, endpoint: str, right: Callable[[np.ndarray, list[str]], bool], threads: int = 4) -> None:
        self.endpoint, self.right = endpoint, right
        self.answers, self.wrong = 0, list[object]()
        self.slowest_s = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(threads)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        assert not self.wrong
        assert self.answers > 0

    def _ask(self, number: int) -> None:
        with Client(self.endpoint) as client:
            i = 0
            while not self._stop.is_set() and not self.wrong:
                texts, began = [f"{number} {i}", f"again {i}"], time.monotonic()
                try:
                    if not self.right(client.embed(texts, timeout_s=20), texts):
                        self.wrong.append(texts)
                except Exception as error:
                    self.wrong.append(error)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.answers += 1
                i += 1


def same_384(found: np.ndarray, texts: list[str]) -> bool:
    return same(found, texts)


def of_either(found: np.ndarray, texts: list[str]) -> bool:
    """Of the echo model with 384 dimensions, or of the one with 128, and never of both."""
    return same(found, texts) if found.shape[1] == 384 else found.shape == (len(texts), 128)


@contextmanager
def configured(tmp_path: Path, text: str) -> Iterator[tuple[Server, Path]]:
    file = tmp_path / "pool.toml"
    file.write_text(text + "workers = 2\n")
    with serving("--config", str(file), model="", workers="") as server:
        yield server, file


def reload(endpoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, "reload", "--endpoint", endpoint], capture_output=True, text=True, timeout=60, check=False)


# ── reload ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reload_of_the_same_model_replaces_every_worker_and_ends_no_session(tmp_path: Path) -> None:
    with configured(tmp_path, 'model = "echo"\n') as (server, _), Client(server.endpoint) as client:
        kept = client.embed(["before"])
        wait_until(lambda: ready_workers(client) == 2, 5.0)
        before, router, forkserver = workers_of(server.pid), router_of(server.pid), forkserver_of(server.pid)
        with Asking(server.endpoint, same_384):
            said = reload(server.endpoint)
        assert (said.returncode, "2 workers, the same vectors" in said.stdout) == (0, True), said
        assert not set(before) & set(workers_of(server.pid))
        assert part(server.pid, "embedpool-fork") != [forkserver]
        assert router_of(server.pid) == router
        assert len(children(server.pid)) == 4, "router, forkserver and two workers, and nobody else"
        assert state(client)["reload"] == {"count": 1, "state": "done", "reason": ""}
        assert same(kept, ["before"])


def test_a_reload_with_another_model_has_every_client_go_over_to_it_without_an_error(tmp_path: Path) -> None:
    with configured(tmp_path, 'model = "echo"\n') as (server, file), Client(server.endpoint) as client:
        kept = client.embed(["before"])
        file.write_text('model = "echo:128"\nworkers = 2\n')
        with Asking(server.endpoint, of_either) as asking:
            time.sleep(0.2)
            said = reload(server.endpoint)
            time.sleep(0.2)
        assert (said.returncode, "echo:128, 2 workers, new vectors" in said.stdout) == (0, True), said
        assert asking.slowest_s < 2.0
        assert client.embed(["after"]).shape == (1, 128)
        assert client.model().name == "echo:128"
        assert same(kept, ["before"]), "an array of the old session changed"
        wait_until(lambda: ready_workers(client) == 2, 5.0)
        wait_until(lambda: len(children(server.pid)) == 4, 5.0)
        wait_until(lambda: len(list((server.runtime_dir / "segments").iterdir())) == 1, 5.0, "old segments to go")


def test_large_requests_that_are_open_when_the_model_changes_are_answered_whole_by_the_new_one(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(8000)]
    with configured(tmp_path, 'model = "echo"\n') as (server, file), Client(server.endpoint, segment_bytes=64 << 20) as client:
        client.embed(["warm"])
        file.write_text('model = "echo:64"\nworkers = 2\n')
        found: list[np.ndarray] = []
        threads = [threading.Thread(target=lambda: found.append(client.embed(texts, timeout_s=30))) for _ in range(3)]
        kill(server.pid, signal.SIGHUP)
        wait_until(lambda: part(server.pid, "embedpool-fork")[1:] != [], 10.0, "the new forkserver")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert len(found) == 3
        for vectors in found:
            assert vectors.shape in ((8000, 384), (8000, 64))
            assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5), "rows of two models, or none"


def test_workers_and_limits_can_be_changed_by_a_reload(tmp_path: Path) -> None:
    with configured(tmp_path, 'model = "echo"\n') as (server, file), Client(server.endpoint) as client:
        client.embed(["x"] * 5)
        for count in (3, 4, 1):
            file.write_text(f'model = "echo"\nmax_request_rows = {count}\nworkers = {count}\n')
            with Asking(server.endpoint, same_384, threads=1) if count > 1 else nullcontext():
                said = reload(server.endpoint)
            assert (said.returncode, f"{count} worker" in said.stdout) == (0, True), said
            with Client(server.endpoint) as other, pytest.raises(errors.TooLarge):
                other.embed(["x"] * (count + 1))
            assert sorted(worker["index"] for worker in state(client)["workers"]) == list(range(count))  # type: ignore[attr-defined]
        assert same(client.embed(["1"]), ["1"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('model = "echo:0"\n', "dimension of echo"),
        ('model = "/nowhere"\n', "/nowhere"),
        ('model = "echo"\nno_such = 1\n', "no_such"),
        ("model = [", "cannot be read"),
        ('model = "echo"\nmax_request_bytes = 2048\n', "restart"),
    ],
    ids=["model", "directory", "setting", "syntax", "fixed"],
)
def test_a_configuration_that_does_not_load_leaves_the_old_one_serving_and_says_why(
    text: str, reason: str, tmp_path: Path
) -> None:
    with configured(tmp_path, 'model = "echo"\n') as (server, file), Client(server.endpoint) as client:
        client.embed(["before"])
        wait_until(lambda: ready_workers(client) == 2, 5.0)
        before = children(server.pid)
        file.write_text(text)
        with Asking(server.endpoint, same_384, threads=2):
            said = reload(server.endpoint)
        assert said.returncode == 2
        assert "goes on as before" in said.stderr and reason in said.stderr
        assert sorted(children(server.pid)) == sorted(before)
        file.write_text('model = "echo:8"\nworkers = 2\n')
        assert reload(server.endpoint).returncode == 0, "the next one is not held against it"
        assert client.embed(["after"]).shape == (1, 8)


RELOADED = """
import os, sys
from embedpool.models.echo import EchoEncoder
from embedpool.worker.main import main

def load(spec):
    if spec.dim == 7: sys.exit(9)
    def make(threads):
        if spec.dim == 6: os._exit(9)
        return EchoEncoder(spec)
    return make

sys.exit(main(sys.argv[1:], load))
"""
CONFIGURED = """
import sys
from embedpool import config
from embedpool.supervise.serve import serve
from embedpool.supervise.supervisor import Programs

def load():
    return config.load({"workers": "2", "runtime_dir": sys.argv[1]}, sys.argv[2])

ready = lambda started: print(started.endpoint, flush=True)
sys.exit(serve(load(), ready, lambda warning: None, programs=Programs(worker="fake"), load=load))
"""


@pytest.mark.parametrize("dim", [7, 6], ids=["its forkserver cannot start", "its workers cannot start"])
def test_a_model_that_resolves_but_does_not_start_leaves_the_old_one_serving(dim: int, tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text('model = "echo"\nworkers = 2\n')
    with with_workers(RELOADED, tmp_path, CONFIGURED, str(file)) as process:
        endpoint = read_line(process, 20.0).strip()
        with Client(endpoint) as client:
            client.embed(["before"])
            wait_until(lambda: ready_workers(client) == 2, 5.0)
            before = children(process.pid)
            file.write_text(f'model = "echo:{dim}"\n')
            with Asking(endpoint, same_384, threads=2):
                said = reload(endpoint)
            assert said.returncode == 2
            assert "each time it was started" in said.stderr
            wait_until(lambda: sorted(children(process.pid)) == sorted(before), 5.0, "what was started to be gone")
            assert ready_workers(client) == 2


BREAKABLE = """
import os, sys
from pathlib import Path
from embedpool.models.echo import EchoEncoder
from embedpool.worker.main import main

def make(spec):
    if Path(__file__).with_name("broken").exists(): os._exit(9)
    return EchoEncoder(spec)

sys.exit(main(sys.argv[1:], lambda spec: lambda threads: make(spec)))
"""


def test_a_pool_that_has_failed_serves_again_after_a_reload_that_mends_it(tmp_path: Path) -> None:
    file, broken = tmp_path / "pool.toml", tmp_path / "broken"
    file.write_text('model = "echo"\n')
    with with_workers(BREAKABLE, tmp_path, CONFIGURED, str(file)) as process:
        endpoint = read_line(process, 20.0).strip()
        with Client(endpoint) as client:
            client.embed(["before"])
            wait_until(lambda: ready_workers(client) == 2, 5.0)
            broken.touch()
            for victim in workers_of(process.pid):
                kill(victim)
            wait_until(lambda: state(client)["state"] == "failed", 10.0)
            with pytest.raises(errors.PoolFailed, match="exit status 9"):
                client.embed(["nobody"])
            assert reload(endpoint).returncode == 2, "it is still broken"
            broken.unlink()
            done = reload(endpoint)
            assert done.returncode == 0, done
            assert same(client.embed(["after"]), ["after"])
            wait_until(lambda: ready_workers(client) == 2, 5.0)
            assert state(client)["state"] == "serving"


@pytest.mark.parametrize("victim", ["embedpool-w", "embedpool.router", "embedpool-fork"])
def test_a_reload_survives_the_death_of_any_part_in_the_middle(victim: str, tmp_path: Path) -> None:
    with configured(tmp_path, 'model = "echo"\n') as (server, file), Client(server.endpoint) as client:
        client.embed(["before"])
        with Asking(server.endpoint, of_either, threads=2):
            for round, delay_s in enumerate((0.05, 0.2, 0.4, 0.6)):
                file.write_text(f'model = "echo:{128 if round % 2 == 0 else 384}"\nworkers = 2\n')
                count = state(client)["reload"]["count"]  # type: ignore[index]
                kill(server.pid, signal.SIGHUP)
                time.sleep(delay_s)
                for pid in part(server.pid, victim)[:1]:
                    kill(pid)
                wait_until(lambda before=count: state(client)["reload"]["count"] > before, 15.0, "the reload to end")  # type: ignore[misc, index]
        wait_until(lambda: ready_workers(client) == 2, 10.0)
        wait_until(lambda: len(children(server.pid)) == 4, 5.0, "router, forkserver and two workers, and nobody else")
        assert state(client)["reload"]["state"] == "done"  # type: ignore[index]


def test_hang_ups_one_after_the_other_end_with_the_last_configuration(tmp_path: Path) -> None:
    with configured(tmp_path, 'model = "echo"\n') as (server, file), Client(server.endpoint) as client:
        client.embed(["before"])
        for dim in (16, 32, 64):
            file.write_text(f'model = "echo:{dim}"\nworkers = 2\n')
            kill(server.pid, signal.SIGHUP)
            time.sleep(0.1)
        wait_until(lambda: client.embed(["x"], timeout_s=10).shape[1] == 64, 15.0)
        wait_until(lambda: state(client)["reload"]["state"] == "done", 10.0)  # type: ignore[index]


def test_a_pool_that_is_told_to_stop_in_the_middle_of_a_reload_leaves_nothing(tmp_path: Path) -> None:
    for delay_s in (0.0, 0.1, 0.3):
        with configured(tmp_path, 'model = "echo"\n') as (server, file):
            file.write_text('model = "echo:16"\nworkers = 2\n')
            kill(server.pid, signal.SIGHUP)
            time.sleep(delay_s)
            parts = children(server.pid)
            assert server.stop() == 0
            assert not server.runtime_dir.exists()
            wait_until(lambda these=parts: not any(map(alive, these)), 2.0)  # type: ignore[misc]


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────

GROWING = """
import sys
from embedpool.models.echo import EchoEncoder
from embedpool.worker.main import main

class Encoder(EchoEncoder):
    def tokens(self, texts, cut):
        if "grow" in texts: self.held = bytearray(300_000_000)
        return super().tokens(texts, cut)

sys.exit(main(sys.argv[1:], lambda spec: lambda threads: Encoder(spec)))
"""
LIMITED = """
import sys
from embedpool import config
from embedpool.supervise.serve import serve
from embedpool.supervise.supervisor import Programs

given = {"model": "echo", "workers": "2", "max_worker_rss_mb": "250", "runtime_dir": sys.argv[1]}
ready = lambda started: print(started.endpoint, flush=True)
sys.exit(serve(config.load(given), ready, lambda warning: None, programs=Programs(worker="fake")))
"""


def test_a_worker_that_grew_too_large_is_replaced_by_a_fresh_one_and_nobody_notices(tmp_path: Path) -> None:
    with with_workers(GROWING, tmp_path, LIMITED) as process:
        endpoint = read_line(process, 20.0).strip()
        with Client(endpoint) as client:
            client.embed(["warm"])
            wait_until(lambda: ready_workers(client) == 2, 5.0)
            before = workers_of(process.pid)
            with Asking(endpoint, same_384):
                assert same(client.embed(["grow"]), ["grow"])
                wait_until(lambda: len(set(before) & set(workers_of(process.pid))) == 1, 5.0, "the large one to go")
            wait_until(lambda: ready_workers(client) == 2, 5.0)
            assert all(worker["restarts"] == 0 for worker in state(client)["workers"])  # type: ignore[attr-defined]


# ── stopped ──────────────────────────────────────────────────────────────────────────────────────────────────────────

STOPS_ITSELF = """
import os, signal, sys
from pathlib import Path
from embedpool.models.echo import EchoEncoder
from embedpool.worker.main import main

def make(threads, spec):
    once = Path(sys.argv[0]).with_name("stopped")
    if not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    return EchoEncoder(spec)

sys.exit(main(sys.argv[1:], lambda spec: lambda threads: make(threads, spec)))
"""


def test_a_worker_that_is_stopped_while_it_starts_is_replaced_after_the_hang_deadline(tmp_path: Path) -> None:
    with with_workers(STOPS_ITSELF, tmp_path) as process:  # hang_s is 1 there
        endpoint = read_line(process, 20.0).strip()
        with Client(endpoint) as client:
            assert same(client.embed(["at once"]), ["at once"])
            wait_until(lambda: ready_workers(client) == 2, 6.0, "another one in its place")


def test_a_router_that_is_stopped_for_long_is_replaced_and_the_open_request_is_answered() -> None:
    with Pool("echo", workers=1, hang_s=1.0) as pool:
        pool.embed(["warm"])
        router = router_of(pool.pid)
        kill(router, signal.SIGSTOP)
        began = time.monotonic()
        assert same(pool.embed(["open"], timeout_s=30), ["open"])
        assert 4.0 < time.monotonic() - began < 15.0
        assert not alive(router)


def test_a_router_that_is_stopped_for_a_moment_goes_on() -> None:
    with Pool("echo", workers=1) as pool:
        pool.embed(["warm"])
        router = router_of(pool.pid)
        kill(router, signal.SIGSTOP)
        time.sleep(1.5)
        kill(router, signal.SIGCONT)
        assert same(pool.embed(["open"], timeout_s=30), ["open"])
        assert router_of(pool.pid) == router


def test_a_supervisor_that_is_stopped_for_long_takes_nobody_for_silent_afterwards() -> None:
    with Pool("echo", workers=1, hang_s=0.2) as pool:
        pool.embed(["warm"])
        router, workers = router_of(pool.pid), workers_of(pool.pid)
        kill(pool.pid, signal.SIGSTOP)
        time.sleep(6.0)
        assert same(pool.embed(["meanwhile"]), ["meanwhile"])
        kill(pool.pid, signal.SIGCONT)
        time.sleep(0.7)
        assert (router_of(pool.pid), workers_of(pool.pid)) == (router, workers)
