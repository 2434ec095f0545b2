"""The fault table of HOUSE.md, every cell of it: when × how → what clients see, within how long, and the pool afterwards.

A worker of these tests does one thing wrong, once, at a given moment of its life; the next one in its place behaves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedpool import Client
from tests.faults.test_table import Call, ready_workers, state, with_workers
from tests.support import alive, kill, read_line, same, serving, wait_until, workers_of

# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FAULTY = """
import os, signal, sys, threading
from pathlib import Path
from embedpool.models.echo import EchoEncoder
from embedpool.worker import main as worker

WHEN, HOW = "{when}", "{how}"
once = Path(__file__).with_name("done")

def fault(when):
    if when != WHEN:
        return
    try:
        once.touch(exist_ok=False)
    except FileExistsError:
        return
    once.write_text(str(os.getpid()))
    if HOW == "exit": os._exit(7)
    if HOW == "raises": raise RuntimeError("a fault of this test")
    os.kill(os.getpid(), getattr(signal, HOW))

class Encoder(EchoEncoder):
    def __init__(self, spec):
        fault("loading")
        super().__init__(spec)
    def run(self, rows, width):
        if Worker.serves:  # and does not warm up
            fault("in the session")
        return super().run(rows, width)

class Worker(worker.Worker):
    serves = False
    def run(self):
        Worker.serves = True
        signal.signal(signal.SIGUSR2, self._raise)
        super().run()
    def _raise(self, *_):
        raise RuntimeError("a fault of this test")
    def _send(self, frames):
        fault("written but not reported") if self.current is not None else None
        super()._send(frames)
        if self.current is not None and WHEN == "idle":
            self.current = None
            threading.Timer(0.1, self._idle).start()
    def _idle(self):
        try:
            fault("idle")
        except RuntimeError:  # of a thread of its own: the worker's must see it, and now, whatever it waits for
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)

worker.Worker = Worker
sys.exit(worker.main(sys.argv[1:], lambda spec: lambda threads: Encoder(spec)))
"""
WHEN = ("loading", "idle", "in the session", "written but not reported")
HOW = ("SIGKILL", "SIGSEGV", "SIGSTOP", "exit", "raises")
WITHIN_S = 6.0  # a hang is noticed after one second, and a start takes tenths


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("when", WHEN)
def test_whatever_happens_to_a_worker_at_whatever_moment_every_request_is_answered(when: str, how: str, tmp_path: Path) -> None:
    code = FAULTY.replace("{when}", when).replace("{how}", how)
    with with_workers(code, tmp_path) as process:
        endpoint = read_line(process, 20.0).strip()
        with Client(endpoint) as client, Client(endpoint) as other:
            texts = [f"text {i}" for i in range(300)]
            calls = [Call(lambda c=c: c.embed(texts, timeout_s=30)) for c in (client, other)]  # type: ignore[misc]
            for call in calls:
                assert same(call.result(WITHIN_S), texts)
            wait_until((tmp_path / "done").exists, 2.0, "the fault to happen")
            faulty = int(wait_for_text(tmp_path / "done"))
            for i in range(20):
                assert same(client.embed([f"after {i}"], timeout_s=WITHIN_S), [f"after {i}"])
            survives = how == "raises" and when == "in the session"
            if survives:  # the row is tried again by itself, and its worker lives on
                assert alive(faulty)
            elif not (how == "SIGSTOP" and when == "idle"):  # that one is found out by the next job that it gets
                wait_until(lambda: not alive(faulty), WITHIN_S, "the faulty one to be gone")
            else:
                give_work_until(client, lambda: not alive(faulty))
            wait_until(lambda: ready_workers(client) == 2, WITHIN_S)
            assert state(client)["counters"]["refused"] == {}  # type: ignore[index]


def wait_for_text(path: Path) -> str:
    wait_until(lambda: path.read_text() != "", 2.0)
    return path.read_text()


def give_work_until(client: Client, true: object) -> None:
    deadline_at = time.monotonic() + WITHIN_S
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline_at, "a stopped worker is never found out"
        calls = [Call(lambda i=i: client.embed([f"more {i}"], timeout_s=10)) for i in range(8)]  # type: ignore[misc]
        for call in calls:
            call.result(10)


def test_a_worker_that_is_stopped_with_its_rows_written_and_goes_on_after_it_was_given_up_changes_nothing() -> None:
    """Killed and reaped before its work is given away: SIGCONT finds nobody who could write late."""
    with serving("--hang-s", "0.5") as server, Client(server.endpoint) as client:
        client.embed(["warm"])
        wait_until(lambda: ready_workers(client) == 2, 5.0)
        stopped = workers_of(server.pid)
        for pid in stopped:
            kill(pid, signal.SIGSTOP)
        texts = [f"text {i}" for i in range(500)]
        call = Call(lambda: client.embed(texts, timeout_s=20))
        assert same(call.result(10), texts)
        for pid in stopped:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CLIENT = """
import sys, threading, time
from embedpool import Client
client = Client(sys.argv[1])
held = client.embed(["held"])
texts = ["a text of a usual length, number %d" % i for i in range(2000)]
def work():
    while True:
        if "{when}" == "mid-request": client.embed(texts)
        else: time.sleep(0.01)
thread = threading.Thread(target=work, daemon=True)
thread.start()
print("holds", flush=True)
for line in sys.stdin:
    if line == "exit\\n": sys.exit(0)
    if line == "raises\\n": raise RuntimeError("a fault of this test")
    if line == "held?\\n":
        print((held == client.embed(["held"])).all(), flush=True)
"""


@contextmanager
def another_client(endpoint: str, when: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", CLIENT.replace("{when}", when), endpoint]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@pytest.mark.parametrize("how", ["exit", "raises"])
@pytest.mark.parametrize("when", ["holding room", "mid-request"])
def test_a_client_that_ends_by_itself_leaves_no_segment_and_no_work(when: str, how: str) -> None:
    with serving() as server, Client(server.endpoint) as other, another_client(server.endpoint, when) as process:
        tell(process, how)
        process.wait(5)
        assert same(other.embed(["at once"], timeout_s=2), ["at once"])
        wait_until(lambda: len(list((server.runtime_dir / "segments").iterdir())) == 1, 3.0, "its segment to go")
        wait_until(lambda: state(other)["sessions"]["requests_open"] == 0, 5.0)  # type: ignore[index]


@pytest.mark.parametrize("when", ["holding room", "mid-request"])
def test_a_client_that_is_stopped_disturbs_nobody_keeps_its_session_and_goes_on(when: str) -> None:
    with serving() as server, Client(server.endpoint) as other, another_client(server.endpoint, when) as process:
        other.embed(["warm"])
        kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()
        while time.monotonic() - began < 2.0:  # longer than it takes to find out that a client is gone
            assert same(other.embed(["meanwhile"], timeout_s=2), ["meanwhile"])
        assert len(list((server.runtime_dir / "segments").iterdir())) == 2, "it may come back: its segment stays"
        kill(process.pid, signal.SIGCONT)
        tell(process, "held?")
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"


def test_many_clients_killed_at_random_moments_leave_nothing_and_disturb_nobody() -> None:
    with serving() as server, Client(server.endpoint) as other:
        wrong: list[object] = []
        stop = threading.Event()

        def ask() -> None:
            i = 0
            while not stop.is_set():
                i += 1
                try:
                    if not same(other.embed([f"text {i}"], timeout_s=5), [f"text {i}"]):
                        wrong.append(i)
                except Exception as error:
                    wrong.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        for round in range(6):
            with another_client(server.endpoint, "mid-request") as process:
                time.sleep(0.03 * round)
                kill(process.pid)
                process.wait()
        stop.set()
        thread.join(10)
        assert not wrong
        wait_until(lambda: len(list((server.runtime_dir / "segments").iterdir())) == 1, 4.0, "segments to go")
        wait_until(lambda: state(other)["sessions"]["requests_open"] == 0, 5.0)  # type: ignore[index]
