"""Faults on the client's side of a session: threads that come and go, interrupts, routers lost at the worst moment."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from embedpool import AsyncClient, Client, Pool, errors
from tests.support import kill, router_of, same, serving, wait_until, workers_of


def test_a_burst_of_threads_never_sleeps_on_an_answer_that_has_come() -> None:
    slow: list[float] = []
    with Pool("echo", workers=2) as pool:
        pool.embed(["warm"])
        barrier = threading.Barrier(8)

        def work(number: int) -> None:
            for i in range(150):
                barrier.wait(30)
                began = time.monotonic()
                assert same(pool.embed([f"{number} {i}"], timeout_s=20), [f"{number} {i}"])
                slow.append(time.monotonic() - began)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive()
    assert len(slow) == 8 * 150
    assert max(slow) < 0.9, "a thread slept until the reader's next ping"


def test_a_waiter_that_gives_up_does_not_take_the_reading_with_it() -> None:
    with Pool("minilm", workers=1) as pool:
        pool.embed(["warm"])
        long = [f"a sentence of a usual length, number {i}" for i in range(200)]
        results: dict[str, object] = {}

        def call(name: str, timeout_s: float) -> None:
            try:
                results[name] = pool.embed(long, timeout_s=timeout_s).shape
            except errors.EmbedpoolError as error:
                results[name] = error

        threads = [
            threading.Thread(target=call, args=(name, s)) for name, s in (("first", 60), ("gives up", 0.4), ("third", 60))
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
            time.sleep(0.02)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert isinstance(results["gives up"], errors.TimedOut | errors.Overloaded)
        assert results["first"] == results["third"] == (200, 384)
        assert time.monotonic() - began < 40
        assert not pool._sleepers
        assert pool._reader is None


def test_answered_requests_of_other_threads_give_their_rooms_back_while_one_waits() -> None:
    with Pool("minilm", workers=2, segment_bytes=1 << 20) as pool:
        pool.embed(["warm"])
        wait_until(lambda: json.loads(pool.status())["workers"][1]["state"] == "idle", 10.0)
        long = [f"a sentence of a usual length, number {i}" for i in range(300)]
        thread = threading.Thread(target=lambda: pool.embed(long, priority="bulk"))
        thread.start()
        for i in range(60):
            pool.embed([f"short {i}"])
        assert pool._core.arena is not None
        with pool._lock:
            assert pool._core.arena.taken_bytes < 300 * 384 * 4 + 64 * 1024
            assert len(pool._sleepers) <= 1
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A process that was started in the background of a script has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_interrupts_at_any_moment_leave_a_client_that_works() -> None:
    with Pool("echo", workers=1) as pool:
        pool.embed(["warm"])
        interrupted = 0
        main = threading.main_thread().ident
        assert main is not None
        for i in range(120):
            timer = threading.Timer(0.0003 * (i % 20), signal.pthread_kill, (main, signal.SIGINT))
            try:
                timer.start()
                for _ in range(40):
                    pool.embed([f"text {i}"])
                timer.join()
            except KeyboardInterrupt:
                interrupted += 1
            with contextlib.suppress(KeyboardInterrupt):
                timer.join()
            assert same(pool.embed(["after"], timeout_s=5), ["after"])
        assert interrupted > 50


def test_documents_over_the_death_of_the_router_are_right_while_other_arrays_are_held() -> None:
    texts = [f"document {i} " + "x" * 200 for i in range(3000)]
    with Pool("echo", workers=2) as pool:
        for round in range(3):
            held = [pool.embed([f"held {round} {i}"]) for i in range(5)]
            timer = threading.Timer(0.01 + 0.03 * round, kill, (router_of(pool.pid),))
            timer.start()
            assert same(pool.embed_documents(texts, timeout_s=20), texts)
            timer.join()
            assert all(same(array, [f"held {round} {i}"]) for i, array in enumerate(held))


def test_a_pause_is_not_taken_for_the_death_of_the_router() -> None:
    with Pool("minilm", workers=1) as pool:
        pool.embed(["warm"])
        session = pool._core.arena
        time.sleep(4.2)  # longer than GONE_AFTER_S
        assert pool.embed([f"a sentence of a usual length, number {i}" for i in range(100)]).shape == (100, 384)
        assert pool._core.arena is session, "a healthy session was given up"


def test_a_router_that_dies_between_question_and_answer_of_a_greeting_does_not_end_the_client() -> None:
    place = Path("/dev/shm") / f"embedpool-mute-{os.getpid()}"
    place.mkdir(mode=0o750)
    context = zmq.Context()
    mute = context.socket(zmq.ROUTER)
    mute.bind(f"ipc://{place}/embedpool.sock")
    client = Client(f"ipc://{place}/embedpool.sock", connect_timeout_s=0.5)
    with client:
        with pytest.raises(errors.NotRunning):
            client.embed(["nobody answers"])
        mute.recv_multipart()
        mute.close(0)
        context.term()
        with serving(runtime_dir=place):
            assert same(client.embed(["after"], timeout_s=10), ["after"])


def test_threads_that_start_a_pool_together_start_one() -> None:
    with Pool("echo", workers=1) as pool:
        pass
    pool = Pool("echo", workers=1)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(pool.embed(["x"]).shape)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [(1, 384)] * 4
    pool.close()


def test_a_pool_that_comes_back_with_another_model_gives_its_vectors() -> None:
    with serving("--model", "echo:64") as server, Client(server.endpoint) as client:
        assert client.embed(["x"]).shape == (1, 64)
        server.stop()
        with serving(runtime_dir=server.runtime_dir):
            assert same(client.embed(["x"], timeout_s=10), ["x"])


def test_odd_arguments_are_answered_like_any_others() -> None:
    with Pool("echo", workers=1) as pool:
        assert same(pool.embed(list(np.array(["a", "b"]))), ["a", "b"])
        assert same(pool.embed(["x"], timeout_s=float("inf")), ["x"])
        with pytest.raises(errors.BadRequest, match="list of strings"):
            pool.embed_documents("abc")
        with pytest.raises((errors.TimedOut, errors.Overloaded)):
            pool.embed(["x"], timeout_s=0)
        pool.close()
        with pytest.raises(errors.Cancelled):
            pool.status()


# ── asyncio ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_asyncio_tasks_go_on_through_the_deaths_of_router_and_workers() -> None:
    async def main(pid: int, endpoint: str) -> None:
        async with AsyncClient(endpoint) as client:
            await client.embed(["warm"])
            stop = asyncio.Event()

            async def work(number: int) -> int:
                i = 0
                while not stop.is_set():
                    i += 1
                    texts = [f"{number} {i}"] * (i % 3 + 1)
                    assert same(await client.embed(texts, timeout_s=20), texts)
                return i

            tasks = [asyncio.create_task(work(n)) for n in range(16)]
            for round in range(4):
                await asyncio.sleep(0.4)
                kill(router_of(pid) if round % 2 == 0 else workers_of(pid)[0])
            await asyncio.sleep(0.5)
            stop.set()
            assert min(await asyncio.wait_for(asyncio.gather(*tasks), 30)) > 3

    with serving() as server:
        asyncio.run(main(server.pid, server.endpoint))


def test_asyncio_tasks_that_connect_together_are_all_answered() -> None:
    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as first, AsyncClient(endpoint) as second:
            await first.embed(["takes the only seat"])
            refused = await asyncio.gather(*(second.embed(["x"], timeout_s=3) for _ in range(3)), return_exceptions=True)
            assert any(isinstance(error, errors.Overloaded) for error in refused)
            assert all(isinstance(error, errors.Unavailable) for error in refused)
            waiting = asyncio.create_task(second.embed(["x"], timeout_s=20))
            await first.close()
            with contextlib.suppress(errors.Overloaded):
                await waiting
            assert same(await second.embed(["x"]), ["x"])

    with serving("--max-sessions", "1") as server:
        asyncio.run(asyncio.wait_for(main(server.endpoint), 40))


def test_an_asyncio_client_that_is_dropped_without_close_is_collected_with_its_session() -> None:
    async def main(endpoint: str) -> None:
        for _ in range(5):
            client = AsyncClient(endpoint)
            assert same(await client.embed(["x"]), ["x"])

    with serving() as server:
        asyncio.run(main(server.endpoint))
        gc.collect()
        wait_until(lambda: not list((server.runtime_dir / "segments").iterdir()), 3.0, "segments to go")
