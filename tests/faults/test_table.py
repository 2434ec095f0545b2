"""The fault table: when × how → what clients see, within how long, and the state of the pool afterwards.

The echo model answers in microseconds and cannot be caught in the middle of a run; rows that say so use MiniLM.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from embedpool import Client, Pool, errors
from embedpool import protocol as wire
from embedpool.client.link import open_link
from embedpool.supervise.processes import end_recorded, record
from tests.support import (
    alive,
    children,
    forkserver_of,
    kill,
    launch,
    part,
    read_line,
    router_of,
    same,
    serving,
    wait_until,
    workers_of,
)

SENTENCE = "sentence number {} about nothing in particular, long enough to keep a worker busy for some milliseconds"


def state(client: Client) -> dict[str, object]:
    found: dict[str, object] = json.loads(client.status())
    return found


def ready_workers(client: Client) -> int:
    workers = state(client)["workers"]
    assert isinstance(workers, list)
    return sum(worker["state"] in ("idle", "busy") for worker in workers)


def is_back(pool: Pool, victim: int) -> bool:
    """Whether two workers serve, and another one in the victim's place: the router may not have heard of its end yet."""
    workers = workers_of(pool.pid)
    return len(workers) == 2 and victim not in workers and ready_workers(pool) == 2


class Call:
    """A call in a thread of its own, with its result or error and the time that it took."""

    def __init__(self, run: Callable[[], np.ndarray]) -> None:
        self.found: np.ndarray | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self._run = run
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        began = time.monotonic()
        try:
            self.found = self._run()
        except Exception as error:
            self.error = error
        self.seconds = time.monotonic() - began

    def result(self, within_s: float) -> np.ndarray:
        self._thread.join(within_s)
        assert not self._thread.is_alive(), f"hangs after {within_s} s"
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_worker_that_dies_in_a_session_costs_no_row_and_is_back_in_two_seconds(how: signal.Signals) -> None:
    texts = [SENTENCE.format(i) for i in range(1000)]
    with Pool("minilm", workers=2) as pool, Client(pool.endpoint) as other:
        pool.embed(["warm"])
        wait_until(lambda: ready_workers(other) == 2, 10.0)
        whole = pool.embed_documents(texts)
        call = Call(lambda: pool.embed(texts, timeout_s=60))
        time.sleep(0.3)
        victim = workers_of(pool.pid)[0]
        kill(victim, how)
        wait_until(lambda: not alive(victim), 1.0)
        back_s = wait_until(lambda: ready_workers(other) == 2, 2.0, "the worker to be back")
        assert np.array_equal(call.result(60), whole)
        assert back_s < 2.0
        assert victim not in workers_of(pool.pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_an_idle_worker_that_dies_is_replaced_and_nobody_notices(how: signal.Signals) -> None:
    with Pool("echo", workers=2) as pool:
        pool.embed(["warm"])
        wait_until(lambda: ready_workers(pool) == 2, 5.0)
        for victim in workers_of(pool.pid):
            kill(victim, how)
        began = time.monotonic()
        assert same(pool.embed(["at once"]), ["at once"])
        assert time.monotonic() - began < 2.0
        wait_until(lambda: ready_workers(pool) == 2, 2.0)


def test_a_worker_that_dies_while_loading_is_started_again() -> None:
    with Pool("minilm", workers=2) as pool:
        pool.embed(["warm"])
        for victim in workers_of(pool.pid):
            kill(victim)
        wait_until(lambda: len(workers_of(pool.pid)) == 2, 2.0)
        kill(workers_of(pool.pid)[0])  # it is importing now
        assert pool.embed(["after"], timeout_s=10).shape == (1, 384)
        wait_until(lambda: ready_workers(pool) == 2, 10.0)


def test_a_stopped_worker_is_replaced_after_the_hang_deadline_and_its_row_is_answered() -> None:
    with Pool("minilm", workers=1, hang_s=1.0) as pool, Client(pool.endpoint) as other:
        whole = pool.embed([SENTENCE.format(i) for i in range(50)])
        call = Call(lambda: pool.embed([SENTENCE.format(i) for i in range(50)]))
        time.sleep(0.05)
        (victim,) = workers_of(pool.pid)
        kill(victim, signal.SIGSTOP)
        assert np.array_equal(call.result(8), whole)
        assert not alive(victim)
        assert state(other)["state"] == "serving"


def test_a_worker_stopped_for_less_than_the_deadline_goes_on() -> None:
    with Pool("minilm", workers=1) as pool:
        pool.embed(["warm"])
        (worker,) = workers_of(pool.pid)
        call = Call(lambda: pool.embed([SENTENCE.format(i) for i in range(20)]))
        kill(worker, signal.SIGSTOP)
        time.sleep(0.5)
        kill(worker, signal.SIGCONT)
        assert call.result(10).shape == (20, 384)
        assert workers_of(pool.pid) == [worker]


# ── the forkserver ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_forkserver_that_dies_is_replaced_and_no_worker_goes_with_it(how: signal.Signals) -> None:
    with Pool("echo", workers=2) as pool:
        pool.embed(["warm"])
        wait_until(lambda: ready_workers(pool) == 2, 5.0)
        workers, first = workers_of(pool.pid), forkserver_of(pool.pid)
        kill(first, how)
        assert same(pool.embed(["at once"]), ["at once"])
        wait_until(lambda: part(pool.pid, "embedpool-fork") not in ([], [first]), 5.0, "another forkserver")
        assert workers_of(pool.pid) == workers
        kill(workers[0])
        wait_until(lambda: is_back(pool, workers[0]), 2.0, "a worker from it")


def test_workers_that_die_together_with_their_forkserver_are_back_and_the_row_is_answered() -> None:
    with Pool("minilm", workers=2) as pool, Client(pool.endpoint) as other:
        texts = [SENTENCE.format(i) for i in range(200)]
        whole = pool.embed(texts)
        call = Call(lambda: pool.embed(texts, timeout_s=60))
        time.sleep(0.05)
        for victim in (forkserver_of(pool.pid), *workers_of(pool.pid)):
            kill(victim)
        assert np.array_equal(call.result(15), whole)
        wait_until(lambda: ready_workers(other) == 2, 5.0)


def test_a_stopped_forkserver_is_replaced_when_a_worker_is_needed() -> None:
    with Pool("echo", workers=2) as pool:
        pool.embed(["warm"])
        wait_until(lambda: ready_workers(pool) == 2, 5.0)
        stopped, victim = forkserver_of(pool.pid), workers_of(pool.pid)[0]
        kill(stopped, signal.SIGSTOP)
        kill(victim)
        assert same(pool.embed(["the other worker"]), ["the other worker"])
        wait_until(lambda: is_back(pool, victim), 12.0, "the worker to be back")
        assert not alive(stopped)


def test_a_forkserver_killed_again_and_again_in_the_middle_of_its_work_leaves_no_stray() -> None:
    with Pool("echo", workers=2) as pool:
        pool.embed(["warm"])
        for round in range(5):  # each start comes later than the one before
            wait_until(lambda: len(part(pool.pid, "embedpool-fork")) == 1, 20.0)
            for victim in workers_of(pool.pid)[:1]:
                kill(victim)
            time.sleep(0.001 * round)
            for victim in part(pool.pid, "embedpool-fork"):
                kill(victim)
        wait_until(lambda: ready_workers(pool) == 2, 20.0)
        wait_until(lambda: len(children(pool.pid)) == 4, 5.0, "router, forkserver and two workers, and nobody else")
        assert same(pool.embed(["after"]), ["after"])


SUPERVISOR = """
import sys
from embedpool import config
from embedpool.supervise.serve import serve
from embedpool.supervise.supervisor import Programs

given = {"model": "echo", "workers": "2", "hang_s": "1", "runtime_dir": sys.argv[1]}
ready = lambda started: print(started.endpoint, flush=True)
sys.exit(serve(config.load(given), ready, lambda warning: None, programs=Programs(worker="fake")))
"""

MISBEHAVING = """
import os, signal, sys, time
from embedpool.models.echo import EchoEncoder
from embedpool.worker.main import main

class Encoder(EchoEncoder):
    def tokens(self, texts, cut):
        for text in texts:
            if text == "segv": os.kill(os.getpid(), signal.SIGSEGV)
            if text == "exit": os._exit(7)
            if text == "hang": time.sleep(3600)
            if text == "raise": raise RuntimeError("cannot")
        return super().tokens(texts, cut)

sys.exit(main(sys.argv[1:], lambda spec: lambda threads: Encoder(spec)))
"""


@contextmanager
def with_workers(code: str, tmp_path: Path, supervisor: str = SUPERVISOR, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A supervisor whose workers run this code."""
    (tmp_path / "fake.py").write_text(code)
    command = [sys.executable, "-c", supervisor, str(tmp_path / "run"), *arguments]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)


def test_workers_that_cannot_start_end_the_pool_with_the_reason(tmp_path: Path) -> None:
    with with_workers("raise SystemExit(7)", tmp_path) as process:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert "exit status 7" in said
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("how", "error", "within_s"),
    [
        ("segv", errors.PoisonRow, 10),
        ("exit", errors.PoisonRow, 10),
        ("raise", errors.EncodeFailed, 2),
        ("hang", errors.PoisonRow, 20),
    ],
)
def test_a_text_that_ends_its_workers_is_refused_alone_and_named(
    how: str, error: type[Exception], within_s: float, tmp_path: Path
) -> None:
    texts = [f"text {i}" for i in range(12)]
    with with_workers(MISBEHAVING, tmp_path) as process:
        endpoint = read_line(process, 20.0).strip()
        with Client(endpoint) as client, Client(endpoint) as other:
            client.embed(["warm"])
            began = time.monotonic()
            bad = Call(lambda: client.embed([*texts[:5], how, *texts[5:]], timeout_s=60))
            good = Call(lambda: other.embed(texts, timeout_s=60))
            with pytest.raises(error, match="text 5 "):
                bad.result(60)
            assert time.monotonic() - began < within_s
            assert same(good.result(60), texts)
            assert same(client.embed(["after"], timeout_s=10), ["after"])


# ── the router ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_router_is_replaced_and_open_requests_are_answered() -> None:
    texts = [SENTENCE.format(i) for i in range(200)]
    with Pool("minilm", workers=2) as pool:
        whole = pool.embed(texts)
        kept = whole.copy()
        workers = workers_of(pool.pid)
        call = Call(lambda: pool.embed(texts))
        time.sleep(0.1)
        kill(router_of(pool.pid))
        assert np.array_equal(call.result(15), kept)
        assert call.seconds < 10.0
        assert np.array_equal(whole, kept), "an array of the old session changed"
        assert workers_of(pool.pid) == workers, "workers were lost with the router"
        assert len(list((Path(pool.endpoint.removeprefix("ipc://")).parent / "segments").iterdir())) == 1


def test_documents_go_on_through_the_death_of_the_router() -> None:
    texts = [f"document {i}" for i in range(60_000)]
    with Pool("echo", workers=2, segment_bytes=64 << 20) as pool:
        pool.embed(["warm"])
        call = Call(lambda: pool.embed_documents(texts))
        time.sleep(0.4)
        kill(router_of(pool.pid))
        assert same(call.result(60), texts)


def test_an_idle_client_goes_on_after_the_router_was_replaced() -> None:
    with Pool("echo", workers=1) as pool:
        pool.embed(["warm"])
        for i in range(3):
            victim = router_of(pool.pid)
            kill(victim)
            wait_until(lambda old=victim: not alive(old), 2.0)  # type: ignore[misc]
            assert same(pool.embed([f"after {i}"], timeout_s=10), [f"after {i}"])


def test_a_stopped_router_means_a_timeout_in_time_and_service_when_it_goes_on() -> None:
    with Pool("echo", workers=1) as pool:
        pool.embed(["warm"])
        router = router_of(pool.pid)
        kill(router, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(errors.TimedOut):
                pool.embed(["nobody reads this"], timeout_s=1.0)
            assert time.monotonic() - began < 1.5
        finally:
            kill(router, signal.SIGCONT)
        assert same(pool.embed(["after"], timeout_s=10), ["after"])


def test_a_stop_while_the_router_is_dead_leaves_nothing() -> None:
    with serving() as server, Client(server.endpoint) as client:
        for i in range(3):
            kill(router_of(server.pid))
            assert same(client.embed([f"after {i}"], timeout_s=10), [f"after {i}"])
        kill(router_of(server.pid))  # the next one is due in some tenths of a second
        assert server.stop() == 0
        assert not server.runtime_dir.exists()


# ── the supervisor ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_supervisor_takes_everything_along_and_the_next_start_finds_nothing() -> None:
    with serving(model="minilm") as server, Client(server.endpoint) as client:
        client.embed(["warm"])
        wait_until(lambda: ready_workers(client) == 2, 5.0)
        parts = children(server.pid)
        assert len(parts) == 4, "router, forkserver and two workers"
        stopped = workers_of(server.pid)[0]
        kill(stopped, signal.SIGSTOP)
        call = Call(lambda: client.embed([SENTENCE.format(i) for i in range(100)], timeout_s=3.0))
        time.sleep(0.1)
        kill(server.pid)
        server.process.wait(5)
        wait_until(lambda: not any(map(alive, parts)), 3.0, "router and workers to end")
        with pytest.raises((errors.TimedOut, errors.Overloaded)):
            call.result(5)
        with serving(runtime_dir=server.runtime_dir) as again, Client(again.endpoint) as other:
            assert same(other.embed(["after"]), ["after"])
            assert len(list((again.runtime_dir / "segments").iterdir())) == 1
            again.stop()
        assert not server.runtime_dir.exists()


def test_a_start_after_router_and_supervisor_were_killed_sweeps_what_they_left() -> None:
    with serving() as server, Client(server.endpoint) as client:
        client.embed(["warm"])
        router = router_of(server.pid)
        kill(server.pid, signal.SIGSTOP)  # it must not start another router
        kill(router)
        kill(server.pid)
        server.process.wait(5)
        left = list((server.runtime_dir / "segments").iterdir())
        assert left
        with serving(runtime_dir=server.runtime_dir) as again, Client(again.endpoint) as other:
            assert same(other.embed(["after"]), ["after"])
            assert not any(path.exists() for path in left)


def test_a_recorded_process_is_ended_by_the_next_start_and_a_stranger_with_its_pid_is_not(tmp_path: Path) -> None:
    ours = subprocess.Popen(["sleep", "60"], start_new_session=True)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    path = tmp_path / "processes.json"
    record(path, [ours.pid])
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, [stranger.pid, rows[0][1] - 1]]))
    assert end_recorded(path) == 1
    assert ours.wait(5) == -signal.SIGKILL
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    assert not path.exists()


def test_a_client_that_survives_its_pool_is_served_by_the_next_one() -> None:
    with serving() as server, Client(server.endpoint) as client:
        kept = client.embed(["before"])
        kill(server.pid)
        server.process.wait(5)
        with serving(runtime_dir=server.runtime_dir):
            assert same(client.embed(["after"], timeout_s=10), ["after"])
            assert same(kept, ["before"])


def test_the_owner_of_a_private_pool_that_is_killed_leaves_nothing() -> None:
    script = (
        "import os, sys; from embedpool import Pool; p = Pool('echo', workers=2); p.embed(['x']);"
        "print(p.pid, p.endpoint, flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    with owner.stdin, owner.stdout:
        pid, endpoint = owner.stdout.readline().split()
        parts = [int(pid), *children(int(pid))]
        assert len(parts) == 5, "supervisor, router, forkserver and two workers"
        owner.kill()
        owner.wait()
        wait_until(lambda: not any(map(alive, parts)), 5.0, "the pool to end")
        wait_until(lambda: not Path(endpoint.removeprefix("ipc://")).parent.exists(), 2.0, "its directory to go")


# ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CLIENT = """
import sys, time
from embedpool import Client
client = Client(sys.argv[1])
held = client.embed(["held"])
print("holds", flush=True)
texts = ["a text of a usual length, number %d" % i for i in range(2000)]
while True:
    {what}
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
@pytest.mark.parametrize("when", ["holding room", "mid-request"])
def test_a_client_that_dies_leaves_no_segment_and_disturbs_nobody(when: str, how: signal.Signals) -> None:
    with serving() as server, Client(server.endpoint) as other:
        other.embed(["warm"])
        what = "time.sleep(1)" if when == "holding room" else "client.embed(texts)"
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT.format(what=what), server.endpoint], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "holds\n"
            time.sleep(0.1)
            assert state(other)["sessions"]["open"] == 2  # type: ignore[index]
            kill(process.pid, how)
            process.wait()
        assert same(other.embed(["at once"]), ["at once"])
        wait_until(lambda: len(list((server.runtime_dir / "segments").iterdir())) == 1, 3.0, "its segment to go")
        wait_until(lambda: state(other)["sessions"]["requests_open"] == 0, 5.0)  # type: ignore[index]


def _frames(kind: str) -> list[list[bytes]]:
    good = wire.encode(wire.Embed(1, ("x",), 0))
    return {
        "garbage": [[b"\xc1garbage"], [b""], [b"\xff" * 10_000], [b"\x93\x01\x02\x03"]],
        "wrong types": [
            [_packed(kind="embed", id="one", texts=["x"])],
            [_packed(kind="embed", id=1, texts="x")],
            [_packed(kind="embed", id=1, texts=[1, 2])],
            [_packed(kind="embed", id=1, texts=["x"], offset=-1)],
            [_packed(kind="embed", id=-1, texts=["x"])],
            [_packed(kind="embed", id=1, texts=["x"], budget_ms=float("nan"))],
            [_packed(kind=7)],
            [_packed(kind="vectors", id=1, rows=1, dim=1, tokens=1, fingerprint="")],
        ],
        "wrong version": [[_packed(kind="hello", version=99)], [_packed(kind="hello", version=0)]],
        "a million rows": [[_packed(kind="embed", id=1, texts=["x"] * 1_000_000)]],
        "offset outside": [[wire.encode(wire.Embed(1, ("x",), 1 << 62))], [wire.encode(wire.Embed(2, ("x",), (16 << 20) - 8))]],
        "many frames": [[good] * 1000, [good, b"x" * 1_000_000, good]],
        "a worker's words": [[wire.encode(wire.Done(1, 1.0, (1,)))], [wire.encode(wire.Ready(1, 1, 1.0))]],
    }[kind]


def _packed(**fields: object) -> bytes:
    import msgpack

    packed: bytes = msgpack.packb(fields)
    return packed


@pytest.mark.parametrize(
    "kind",
    ["garbage", "wrong types", "wrong version", "a million rows", "offset outside", "many frames", "a worker's words"],
)
def test_nonsense_is_refused_and_nobody_else_notices(kind: str) -> None:
    with serving() as server, Client(server.endpoint) as other:
        other.embed(["warm"])
        router = router_of(server.pid)
        sock = open_link(server.endpoint)
        sock.setsockopt(zmq.RCVTIMEO, 5000)
        assert isinstance(wire.decode(sock.recv()), wire.Who)
        sock.send(wire.encode(wire.Hello(wire.VERSION, 16 << 20)))
        assert isinstance(wire.decode(sock.recv()), wire.Welcome)
        for frames in _frames(kind):
            sock.send_multipart(frames)
        answers = _answers_until_pong(sock)
        sock.close(0)
        if kind == "many frames":  # what is behind the message is dropped: the message itself is a good one
            assert all(isinstance(answer, wire.Vectors) for answer in answers)
        else:
            refused = [answer for answer in answers if isinstance(answer, wire.Refused)]
            sent = [frames for frames in _frames(kind) if frames != [b""]]  # an empty frame is a probe, and no message
            assert len(refused) == len(sent)
            assert all(answer.message and answer.code != "internal" for answer in refused)
        assert same(other.embed(["at once"], timeout_s=2), ["at once"])
        assert router_of(server.pid) == router


def _answers_until_pong(sock: zmq.Socket[bytes]) -> list[wire.Message]:
    sock.send(wire.encode(wire.Ping(12345)))
    found: list[wire.Message] = []
    while True:
        message = wire.decode(sock.recv_multipart()[0])
        if isinstance(message, wire.Pong):
            break
        found.append(message)
    time.sleep(0.2)  # answers of a worker may come behind the pong
    while sock.poll(200):
        found.append(wire.decode(sock.recv_multipart()[0]))
    return found


def test_bytes_that_are_not_even_zeromq_are_ignored() -> None:
    with serving() as server, Client(server.endpoint) as other:
        other.embed(["warm"])
        path = server.endpoint.removeprefix("ipc://")
        for junk in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, struct.pack(">BQB", 0xFF, 1 << 62, 0x7F), b""):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(path)
                raw.sendall(junk)
                assert same(other.embed(["at once"], timeout_s=2), ["at once"])


def test_a_message_over_the_limit_is_an_error_before_it_is_sent_and_a_closed_door_for_those_who_send_it() -> None:
    with serving("--max-request-bytes", "100000") as server, Client(server.endpoint) as client:
        with pytest.raises(errors.TooLarge, match="at most 100000"):
            client.embed(["x" * 200_000])
        sock = open_link(server.endpoint)
        sock.setsockopt(zmq.RCVTIMEO, 500)
        sock.recv()
        sock.send(b"x" * 200_000)
        while sock.poll(500):  # the connection was closed, and the next one is asked who it is
            assert isinstance(wire.decode(sock.recv()), wire.Who), "an answer to a message over the limit"
        sock.close(0)
        assert same(client.embed(["after"]), ["after"])


def test_more_clients_than_seats_are_refused_with_a_time_to_come_back() -> None:
    with (
        serving("--max-sessions", "2") as server,
        Client(server.endpoint) as one,
        Client(server.endpoint) as two,
        Client(server.endpoint) as three,
    ):
        assert same(one.embed(["1"]), ["1"])
        assert same(two.embed(["2"]), ["2"])
        with pytest.raises(errors.Overloaded, match="2 sessions") as caught:
            three.embed(["3"])
        assert caught.value.retry_after_ms
        one.close()
        assert same(three.embed(["3"]), ["3"])


def test_a_pool_restarted_under_load_from_many_threads_answers_them_all() -> None:
    wrong: list[object] = []
    with Pool("echo", workers=2) as pool:
        pool.embed(["warm"])
        stop = threading.Event()

        def work(number: int) -> None:
            i = 0
            while not stop.is_set():
                i += 1
                try:
                    if not same(pool.embed([f"{number} {i}"], timeout_s=20), [f"{number} {i}"]):
                        wrong.append((number, i))
                except Exception as error:
                    wrong.append(error)
                    return

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for round in range(6):
            time.sleep(0.4)
            kill(router_of(pool.pid) if round % 2 else workers_of(pool.pid)[0])
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join(25)
            assert not thread.is_alive()
    assert not wrong


def test_two_starts_at_once_give_one_pool(tmp_path: Path) -> None:
    place = Path("/dev/shm") / f"embedpool-race-{tmp_path.name}"
    both = [launch(["serve", "--model", "echo", "--runtime-dir", str(place)]) for _ in range(2)]
    lines = [read_line(process, 30.0) for process in both]
    try:
        assert sorted(bool(line) for line in lines) == [False, True]
        loser = both[lines.index("")]
        assert loser.wait(10) == 2
    finally:
        for process in both:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)
    assert not place.exists()
