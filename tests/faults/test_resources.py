"""What runs out: file descriptors, shared memory, processes, memory.

| what runs out, where                  | what clients see                             | afterwards                       |
|---------------------------------------|----------------------------------------------|----------------------------------|
| descriptors, in the router            | who is connected nothing; others wait        | served, when some are free again |
| descriptors, for a session's segment  | inline vectors, and a warning                |                                  |
| descriptors, in the client            | Unavailable, at once                         | works, when some are free again  |
| descriptors, when a segment is mapped | inline vectors, and a warning                |                                  |
| shared memory, for a segment          | inline vectors, and a warning                |                                  |
| shared memory, when a worker dies     | nothing                                      | the worker is back               |
| shared memory, at the start           | one sentence and status 2, or a working pool | nothing is left                  |
| processes, for a worker               | a pause                                      | ready, when one can be had       |
| memory, for a worker that starts      | a pause                                      | ready, when some is free again   |
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from embedpool import AsyncClient, Client, errors
from embedpool import protocol as wire
from embedpool.client.link import open_link
from embedpool.router.descriptors import SPARE, Descriptors
from embedpool.shm import segment as shm
from embedpool.shm.segment import ReadMap
from tests.faults.test_table import with_workers
from tests.support import (
    COMMAND,
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

FEW = 64  # RLIMIT_NOFILE of a pool, whose router has 18 of its own
FULL = FEW - Descriptors(FEW, int).for_workers - SPARE - 1  # one is promised to the next worker
MANY = 100
ROOT = Path(__file__).parents[2]


# ── file descriptors, in the router ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def with_few_descriptors() -> Iterator[subprocess.Popen[str]]:
    """A pool of one worker whose processes may have FEW."""
    with tempfile.TemporaryDirectory(prefix="embedpool-test-", dir="/dev/shm") as made:
        limited = ["sh", "-c", f'ulimit -n {FEW} && exec "$@"', "sh", *COMMAND]
        arguments = ["serve", "--model", "echo", "--workers", "1", "--runtime-dir", f"{made}/run"]
        process = subprocess.Popen(
            [*limited, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert "ready" in read_line(process, 20.0)
            yield process
        finally:
            process.terminate()
            process.communicate(timeout=15)


def endpoint_of(process: subprocess.Popen[str]) -> str:
    arguments = process.args
    assert isinstance(arguments, list)
    return f"ipc://{arguments[-1]}/embedpool.sock"


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def busy_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def raw_connections(endpoint: str, how_many: int) -> Iterator[None]:
    """Sockets that connect and say nothing; those for which there is no room in the queue are refused."""
    with ExitStack() as stack:
        for _ in range(how_many):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(endpoint.removeprefix("ipc://"))
        yield


@contextmanager
def silent_clients(endpoint: str, how_many: int) -> Iterator[None]:
    """ZeroMQ sockets that stay connected without a session."""
    socks = [open_link(endpoint) for _ in range(how_many)]
    try:
        yield
    finally:
        for sock in socks:
            sock.close(0)


def wait_until_full(router: int) -> None:
    wait_until(lambda: descriptors(router) >= FULL, 5.0, "the router to have all it lets clients have")
    time.sleep(0.1)
    assert descriptors(router) <= FULL


def test_connections_that_say_nothing_take_the_last_descriptor_from_nobody() -> None:
    with with_few_descriptors() as server, Client(endpoint_of(server)) as client:
        client.embed(["before"])
        router = router_of(server.pid)
        with raw_connections(endpoint_of(server), MANY):
            wait_until_full(router)
            before = busy_s(router)
            for i in range(5):
                assert same(client.embed([f"meanwhile {i}"], timeout_s=2), [f"meanwhile {i}"])
                time.sleep(0.1)
            assert busy_s(router) - before < 0.2, "the router spins"
        with Client(endpoint_of(server)) as other:
            assert same(other.embed(["after"], timeout_s=10), ["after"])
            assert not other.warning
        assert router_of(server.pid) == router


def test_a_router_full_of_clients_serves_them_gets_its_workers_back_and_lets_others_in_when_some_leave() -> None:
    with (
        with_few_descriptors() as server,
        Client(endpoint_of(server)) as client,
        Client(endpoint_of(server), connect_timeout_s=0.5) as late,
    ):
        client.embed(["before"])
        router, worker = router_of(server.pid), workers_of(server.pid)[0]
        with silent_clients(endpoint_of(server), MANY):
            wait_until_full(router)
            with pytest.raises(errors.NotRunning):
                late.embed(["no room"])
            kill(worker)
            assert same(client.embed(["the next worker"], timeout_s=10), ["the next worker"])
            assert workers_of(server.pid) != [worker]
        assert same(late.embed(["room"], timeout_s=10), ["room"])
        assert router_of(server.pid) == router


def test_a_session_for_whose_segment_no_descriptor_is_left_gets_inline_vectors_and_a_warning() -> None:
    with with_few_descriptors() as server:
        sock = open_link(endpoint_of(server))
        sock.setsockopt(zmq.RCVTIMEO, 5000)
        assert isinstance(wire.decode(sock.recv()), wire.Who)
        with silent_clients(endpoint_of(server), MANY):
            wait_until_full(router_of(server.pid))
            sock.send(wire.encode(wire.Hello(wire.VERSION, 1 << 16)))
            welcome = wire.decode(sock.recv())
            assert isinstance(welcome, wire.Welcome)
            assert not welcome.segment
            assert re.search("descriptor.*inline", welcome.warning)
            sock.send(wire.encode(wire.Embed(1, ("inline",), None)))
            frame, payload = sock.recv_multipart()
            assert isinstance(wire.decode(frame), wire.Vectors) and len(payload) == 384 * 4
        sock.close(0)


# ── file descriptors, in the client ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def descriptors_left(how_many: int) -> Iterator[None]:
    """This process can open so many more, and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + how_many + 2, before[1]))
    held: list[int] = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        for _ in range(how_many):
            os.close(held.pop())
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# Each try in a process of its own: the first client of a process makes ZeroMQ's context, and an abort is the end of it.
TRY = """
import asyncio, os, sys
from embedpool import AsyncClient, Client, errors
from tests.faults.test_resources import descriptors_left

async def told(client):
    try:
        found = client.embed(["x"], timeout_s=5)
        found = await found if asyncio.iscoroutine(found) else found
        return f"{found.shape} {client.warning}".strip()
    except errors.EmbedpoolError as error:
        return f"{type(error).__name__}: {error}"

async def main():
    kind, endpoint = {"sync": Client, "async": AsyncClient}[sys.argv[1]], sys.argv[2]
    for left in map(int, sys.argv[3:]):
        client = kind(endpoint)
        with descriptors_left(left):
            print(await told(client))
        print(await told(client))
        await asyncio.gather(*filter(None, [client.close()]))

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_client_without_descriptors_says_so_and_works_once_there_are_some(kind: str) -> None:
    with serving() as server:
        # With 2, 3 or 4 libzmq aborts when it makes its context; with 7 it would try to connect in silence.
        tries = [["0"], ["2"], ["3"], ["4"], ["7"], ["10"], ["11", "0", "1", "2", "5", "6"]]
        running = [
            subprocess.Popen(
                [sys.executable, "-c", TRY, kind, server.endpoint, *left], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            for left in tries
        ]
        for left, process in zip(tries, running, strict=True):
            said = process.communicate(timeout=20)[0].splitlines()
            assert process.returncode == 0, f"with {left}: {said}"
            for n, without, after in zip(left, said[::2], said[1::2], strict=True):
                enough = n in ("11", "6")
                assert enough or re.match("Unavailable: .*Too many open files.*ulimit", without), f"with {n}: {without}"
                assert not enough or without == "(1, 384)", f"with {n}: {without}"
                assert after == "(1, 384)"


def test_a_segment_that_cannot_be_mapped_is_one_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    made = shm.create(tmp_path, 1 << 16)
    before = descriptors(os.getpid())
    for left in range(3):
        with descriptors_left(left), pytest.raises(shm.SegmentError, match="Too many open files"):
            ReadMap(str(made.path), made.size)
        assert descriptors(os.getpid()) == before
        assert made.is_abandoned()
    with descriptors_left(3):
        ReadMap(str(made.path), made.size).close()
    made.remove()


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_client_that_cannot_map_its_segment_gets_inline_vectors_and_a_warning(left: int) -> None:
    def without_descriptors(path: str, size: int) -> ReadMap:
        with descriptors_left(left):
            return ReadMap(path, size)

    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client:
            client._core.map_segment = without_descriptors
            assert same(await client.embed(["inline"], timeout_s=5), ["inline"])
            assert "Too many open files" in client.warning

    with serving() as server:
        with Client(server.endpoint) as client:
            client._core.map_segment = without_descriptors
            assert same(client.embed(["inline"], timeout_s=5), ["inline"])
            assert "Too many open files" in client.warning
        asyncio.run(main(server.endpoint))
        wait_until(lambda: not list((server.runtime_dir / "segments").iterdir()), 3.0, "their segments to go")


def test_a_client_that_loses_its_router_and_has_no_descriptors_says_so_and_works_again() -> None:
    with serving() as server, Client(server.endpoint) as client:
        client.embed(["before"])
        router = router_of(server.pid)
        with descriptors_left(0):
            kill(router, signal.SIGSTOP)
            with pytest.raises(errors.Unavailable, match="Too many open files"):
                client.embed(["nobody reads this"], timeout_s=10)
        kill(router, signal.SIGCONT)
        assert same(client.embed(["after"], timeout_s=10), ["after"])


def test_an_asyncio_client_that_loses_its_router_and_has_no_descriptors_goes_on_trying() -> None:
    async def main(endpoint: str, router: int) -> None:
        async with AsyncClient(endpoint) as client:
            await client.embed(["before"])
            kill(router, signal.SIGSTOP)
            with descriptors_left(0):
                asked = asyncio.create_task(client.embed(["asked"], timeout_s=20))
                deadline_at = time.monotonic() + 10
                while client._sock is not None and time.monotonic() < deadline_at:
                    await asyncio.sleep(0.05)
                assert client._sock is None, "the link was not given up"
            kill(router, signal.SIGCONT)
            assert same(await asked, ["asked"])

    with serving() as server:
        asyncio.run(main(server.endpoint, router_of(server.pid)))


# ── shared memory ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def small_tmpfs(place: Path, megabytes: int) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # arrays of a test may still look into it


def fill(place: Path, but_pages: int) -> Path:
    """A file that takes all the room but so many pages."""
    filler, disk = place / "filler", os.statvfs(place)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (disk.f_bavail - but_pages) * disk.f_frsize)
    return filler


def test_a_tmpfs_that_becomes_full_costs_nobody_an_answer_and_the_pool_nothing(tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(500)]
    with (
        small_tmpfs(tmp_path, 4),
        serving(runtime_dir=tmp_path / "run") as server,
        Client(server.endpoint, segment_bytes=1 << 20) as early,
        Client(server.endpoint, segment_bytes=1 << 20) as late,
    ):
        kept = early.embed(texts)
        router, workers = router_of(server.pid), workers_of(server.pid)
        filler = fill(tmp_path, 0)
        assert same(late.embed(texts), texts)
        assert re.search(r"\d+ bytes are missing", late.warning)
        for worker in workers:  # each of them has written into the segment's pages, and the next ones write into new ones
            kill(worker)
        assert same(early.embed(texts, timeout_s=10), texts)
        assert same(kept, texts)
        assert not early.warning
        wait_until(lambda: len(workers_of(server.pid)) == 2, 5.0, "the workers to be back")
        assert router_of(server.pid) == router
        recorded = {pid for pid, _ in json.loads((server.runtime_dir / "processes.json").read_text())}
        assert recorded == set(children(server.pid)), "the record names others than those that run"
        filler.unlink()
        with Client(server.endpoint, segment_bytes=1 << 20) as again:
            assert same(again.embed(texts), texts)
            assert not again.warning
        assert server.stop() == 0
        assert not server.runtime_dir.exists()


@pytest.mark.parametrize("pages", [0, 1, 2, 3])
def test_a_tmpfs_that_is_full_at_the_start_is_one_sentence_or_no_matter(pages: int, tmp_path: Path) -> None:
    with small_tmpfs(tmp_path, 1):
        fill(tmp_path, pages)
        process = launch(["serve", "--model", "echo", "--workers", "1", "--runtime-dir", str(tmp_path / "run")])
        try:
            serves = bool(read_line(process, 20.0))
            assert serves == (pages > 0)
            if serves:
                with Client(f"ipc://{tmp_path}/run/embedpool.sock") as client:
                    assert same(client.embed(["inline"]), ["inline"])
                    assert "bytes are missing" in client.warning
        finally:
            process.terminate()
            said = process.communicate(timeout=15)[1]
        assert process.returncode == (0 if serves else 2), said
        if not serves:
            assert said.count("\n") == 1 and re.match("embedpool: .*No space left", said), said
        assert [path.name for path in tmp_path.iterdir()] == ["filler"]


# ── processes and memory, for workers ────────────────────────────────────────────────────────────────────────────────

FORKLESS = """
import errno, os, sys
from embedpool.worker.main import main

fork, forkserver = os.fork, os.getpid()

def scarce():
    if os.path.exists({flag!r}) and (os.getpid() == forkserver) == {itself}:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()

os.fork = scarce
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("itself", [True, False], ids=["the forkserver", "the process between"])
def test_a_pool_that_cannot_fork_says_so_waits_longer_each_time_and_is_ready_once_it_can(itself: bool, tmp_path: Path) -> None:
    flag = tmp_path / "no process can be had"
    flag.touch()
    with with_workers(FORKLESS.format(flag=str(flag), itself=itself), tmp_path) as process:
        time.sleep(2.5)
        assert process.poll() is None
        flag.unlink()
        endpoint = read_line(process, 10.0).strip()
        with Client(endpoint) as client:
            assert same(client.embed(["after"]), ["after"])
        process.terminate()
        said = process.communicate(timeout=15)[1]
    pauses = [float(s) for s in re.findall(r"it could not fork: .*too many processes\): starting it again in ([\d.]+) s", said)]
    assert 3 <= len(pauses) <= 6
    assert pauses == sorted(pauses) and pauses[-1] >= 0.2


def test_a_running_pool_that_cannot_fork_goes_on_with_the_workers_that_it_has(tmp_path: Path) -> None:
    flag = tmp_path / "no process can be had"
    with (
        with_workers(FORKLESS.format(flag=str(flag), itself=True), tmp_path) as process,
        Client(read_line(process, 20.0).strip()) as client,
    ):
        client.embed(["before"])
        wait_until(lambda: len(workers_of(process.pid)) == 2, 5.0)
        flag.touch()
        lost, kept = workers_of(process.pid)
        first = forkserver_of(process.pid)
        kill(lost)
        wait_until(lambda: not alive(first), 5.0, "a fork to fail")
        for i in range(5):
            assert same(client.embed([f"meanwhile {i}"], timeout_s=5), [f"meanwhile {i}"])
        assert workers_of(process.pid) == [kept]
        flag.unlink()
        wait_until(lambda: len(workers_of(process.pid)) == 2, 10.0, "the worker to be back")
        assert len(part(process.pid, "embedpool-fork")) == 1


HUNGRY = """
import os, resource, sys
from embedpool.models.echo import EchoEncoder
from embedpool.worker.main import main

def encoder(spec):
    for short in {flags!r}:
        if os.path.exists(short):
            os.unlink(short)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
            bytearray(1 << 30)
    return EchoEncoder(spec)

sys.exit(main(sys.argv[1:], lambda spec: lambda threads: encoder(spec)))
"""


def test_a_worker_that_finds_no_memory_at_its_start_is_started_again(tmp_path: Path) -> None:
    flags = [tmp_path / "short of memory", tmp_path / "still short of memory"]
    for flag in flags:
        flag.touch()
    with with_workers(HUNGRY.format(flags=[str(flag) for flag in flags]), tmp_path) as process:
        endpoint = read_line(process, 20.0).strip()
        with Client(endpoint) as client:
            assert same(client.embed(["after"], timeout_s=5), ["after"])
        process.terminate()
        said = process.communicate(timeout=15)[1]
    assert said.count("MemoryError\n") == 2
    assert len(re.findall(r"worker \d ended \(exit status 1\): starting it again", said)) == 2
