"""`embedpool-bridge` as AkiDB runs it: one argument, three start-up messages, pipelined batches, nothing left behind."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import alive, children, kill, router_of, same, segments, serving, wait_until, workers_of
from tests.unit.test_bridge import LINES

BRIDGE = Path(sys.executable).with_name("embedpool-bridge")
CACHE = "~/.cache/akidb/models"  # what AkiDB always says
ECHO, MINILM = "echo:384", "sentence-transformers/all-MiniLM-L6-v2"


class Peer:
    """AkiDB's side of the pipes. Reads the descriptor itself: a buffered reader would keep lines that select does not see."""

    def __init__(self, process: subprocess.Popen[bytes], model: str) -> None:
        self.process = process
        self.model = model
        self._heard = b""

    def say(self, method: str, **params: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"method": method, "params": params}).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, within_s: float = 60.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline_at = time.monotonic() + within_s
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], deadline_at - time.monotonic())
            assert ready, f"no reply within {within_s} s"
            part = os.read(self.process.stdout.fileno(), 1 << 20)
            assert part, "the bridge has ended"
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def end(self) -> None:
        """Closes stdin; the bridge says nothing more and ends well."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        assert self._heard + self.process.stdout.read() == b"", "a line that nobody asked for"
        assert self.process.wait(15) == 0

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self.say(method, **params)
        return self.hear()

    def load(self) -> dict[str, Any]:
        """AkiDB's start-up, in its order."""
        assert self.ask("ping") == {"status": "ok", "message": "pong"}
        loaded = self.ask("load_model", model=self.model, cache_dir=CACHE)
        assert loaded["status"] == "ok", loaded
        assert self.embed(["warmup"])["count"] == 1
        return loaded

    def embed(self, inputs: Sequence[str]) -> dict[str, Any]:
        return self.ask("embed_batch", model=self.model, inputs=inputs, normalize=True)


@contextmanager
def bridge(model: str, stderr: int | None = None, **environ: str) -> Iterator[Peer]:
    """The bridge with one argument; stdin is closed and the exit status checked at the end, if it still runs."""
    process = subprocess.Popen(
        [BRIDGE, "/opt/akidb/python/onnx_server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, **environ},
    )
    try:
        peer = Peer(process, model)
        yield peer
        if process.poll() is None:
            peer.end()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def pipeline(peer: Peer, batches: Sequence[Sequence[str]], meanwhile: Any = None) -> list[dict[str, Any]]:
    """All batches written by one thread while this one reads; `meanwhile(i)` is called after reply i."""

    def write() -> None:
        for inputs in batches:
            peer.say("embed_batch", model=peer.model, inputs=list(inputs), normalize=True)

    writer = threading.Thread(target=write)
    writer.start()
    replies = []
    for i in range(len(batches)):
        replies.append(peer.hear())
        if meanwhile is not None:
            meanwhile(i)
    writer.join(10)
    return replies


def test_akidbs_start_up_gets_what_it_insists_on() -> None:
    with serving(model="minilm") as server, bridge(MINILM, EMBEDPOOL_ENDPOINT=server.endpoint) as peer:
        loaded = peer.load()
        assert type(loaded["dimension"]) is int
        assert loaded["dimension"] == 384
        assert loaded["providers"] == ["CPUExecutionProvider"]
        found = peer.embed(["What is Deep Learning?", "another"])
        assert list(found) == ["status", "embeddings", "count"]
        assert found["count"] == 2
        assert np.allclose(found["embeddings"][0][:4], (-0.077885, -0.033265, 0.019733, 0.007262), atol=4e-3)
        assert np.allclose(np.linalg.norm(found["embeddings"], axis=1), 1.0, atol=1e-5)


def test_a_thousand_pipelined_batches_are_answered_in_order_while_workers_and_the_router_are_killed() -> None:
    batches = [[f"batch {i} text {k}" for k in range(i % 4 + 1)] for i in range(1000)]
    with serving() as server, bridge(ECHO, EMBEDPOOL_ENDPOINT=server.endpoint) as peer:
        peer.load()

        def meanwhile(i: int) -> None:
            if i in (200, 500):
                for pid in workers_of(server.pid):
                    kill(pid)
            if i == 750:
                kill(router_of(server.pid))

        for inputs, reply in zip(batches, pipeline(peer, batches, meanwhile), strict=True):
            assert reply["status"] == "ok", reply
            assert reply["count"] == len(inputs)
            assert same(np.array(reply["embeddings"], np.float32), inputs)


def test_a_peer_that_writes_all_before_it_reads_is_answered() -> None:
    batches = [[f"batch {i} text {k} " + "x" * 200 for k in range(32)] for i in range(60)]  # 0.4 MB there, 15 MB back
    with serving() as server, bridge(ECHO, EMBEDPOOL_ENDPOINT=server.endpoint) as peer:
        peer.load()
        for inputs in batches:
            peer.say("embed_batch", model=ECHO, inputs=inputs, normalize=True)
        for inputs in batches:
            assert same(np.array(peer.hear()["embeddings"], np.float32), inputs)


def test_a_bad_batch_is_one_error_and_the_next_is_answered() -> None:
    with serving("--max-text-chars=1000") as server, bridge(ECHO, EMBEDPOOL_ENDPOINT=server.endpoint) as peer:
        peer.load()
        assert peer.embed(["x" * 2000])["status"] == "error"
        assert peer.ask("dance") == {"status": "error", "message": "Unknown method: dance"}
        assert peer.ask("embed_batch", model="other", inputs=["a"]) == {
            "status": "error",
            "message": "Model not loaded: other. Call load_model first.",
        }
        assert "serves echo:384, not other" in peer.ask("load_model", model="other", cache_dir=CACHE)["message"]
        assert peer.embed([])["embeddings"] == []
        assert peer.embed(["a"])["count"] == 1


def test_a_pool_that_is_started_again_is_used_again_and_its_absence_is_an_error_in_time() -> None:
    with serving() as first, bridge(ECHO, EMBEDPOOL_ENDPOINT=first.endpoint, EMBEDPOOL_BRIDGE_TIMEOUT_S="2") as peer:
        peer.load()
        first.stop()
        peer.say("embed_batch", model=ECHO, inputs=["a"], normalize=True)
        answer = peer.hear(within_s=5.0)
        assert answer["status"] == "error"
        assert "no answer in time" in answer["message"]
        with serving(runtime_dir=first.runtime_dir):
            wait_until(lambda: peer.embed(["a"])["status"] == "ok", 15.0)


def test_workers_that_stand_still_are_an_error_in_time() -> None:
    with serving() as server, bridge(ECHO, EMBEDPOOL_ENDPOINT=server.endpoint, EMBEDPOOL_BRIDGE_TIMEOUT_S="0.5") as peer:
        peer.load()
        stopped = workers_of(server.pid)
        for pid in stopped:
            kill(pid, signal.SIGSTOP)
        peer.say("embed_batch", model=ECHO, inputs=["a"], normalize=True)
        assert peer.hear(within_s=3.0)["status"] == "error"
        for pid in stopped:
            kill(pid, signal.SIGCONT)
        wait_until(lambda: peer.embed(["a"])["status"] == "ok", 10.0)


def test_loading_waits_for_a_pool_that_is_just_being_started() -> None:
    with serving() as first:
        place, endpoint = first.runtime_dir, first.endpoint
        first.stop()
        with bridge(ECHO, EMBEDPOOL_ENDPOINT=endpoint) as peer:
            peer.say("load_model", model=ECHO, cache_dir=CACHE)
            with serving(runtime_dir=place):
                assert peer.hear()["status"] == "ok"


@pytest.mark.parametrize("dtype", ["q8", "float32"])
def test_a_pool_of_another_precision_than_akidb_asks_for_is_refused(dtype: str) -> None:
    with serving() as server, bridge(ECHO, EMBEDPOOL_ENDPOINT=server.endpoint, AKIDB_EMBEDDING_DTYPE=dtype) as peer:
        answer = peer.ask("load_model", model=ECHO, cache_dir=CACHE)
        assert answer["status"] == ("ok" if dtype == "float32" else "error")
        assert dtype == "float32" or "--precision q8" in answer["message"]


# ── a pool of its own ────────────────────────────────────────────────────────────────────────────────────────────────


PRIVATE = {"EMBEDPOOL_ENDPOINT": "ipc:///nowhere/embedpool.sock", "EMBEDPOOL_BRIDGE": "private"}


def family(pid: int) -> list[int]:
    """A process's descendants."""
    found = children(pid)
    return found + [below for child in found for below in family(child)]


def test_a_private_pool_ends_with_the_bridge() -> None:
    with bridge("echo", **PRIVATE) as peer:
        peer.load()
        below = family(peer.process.pid)
        assert len(below) >= 3  # supervisor, router, worker
    wait_until(lambda: not any(map(alive, below)), 10.0)


def test_sigkill_of_a_bridge_with_a_private_pool_leaves_nothing() -> None:
    before = set(Path("/dev/shm").glob("embedpool*"))
    with bridge("echo", **PRIVATE) as peer:
        peer.load()
        below = family(peer.process.pid)
        peer.say("embed_batch", model="echo", inputs=["a"], normalize=True)
        kill(peer.process.pid)
        peer.process.wait(5)
        wait_until(lambda: not any(map(alive, below)), 10.0, f"left: {below}")
        wait_until(lambda: set(Path("/dev/shm").glob("embedpool*")) <= before, 10.0)


def test_sigkill_of_a_bridge_with_a_shared_pool_leaves_no_session() -> None:
    with serving() as server:
        with bridge(ECHO, EMBEDPOOL_ENDPOINT=server.endpoint) as peer:
            peer.load()
            assert segments(server) == 1
            kill(peer.process.pid)
            peer.process.wait(5)
        wait_until(lambda: segments(server) == 0, 5.0)


def test_a_private_pool_that_is_killed_is_replaced() -> None:
    with bridge("echo", **PRIVATE) as peer:
        peer.load()
        (supervisor,) = children(peer.process.pid)
        below = family(supervisor)
        kill(supervisor)
        for _ in range(2):  # the first may still be answered by the router that is about to end
            reply = peer.embed(["a text"])
            assert reply["status"] == "ok", reply
            assert same(np.array(reply["embeddings"], np.float32), ["a text"])
            wait_until(lambda: not any(map(alive, below)), 10.0)
        assert children(peer.process.pid) != [supervisor]


def test_a_private_pool_has_the_precision_that_akidb_asks_for_or_says_why_not() -> None:
    with bridge("echo", stderr=subprocess.DEVNULL, AKIDB_EMBEDDING_DTYPE="uint8", **PRIVATE) as peer:
        answer = peer.ask("load_model", model="no-such-model", cache_dir=CACHE)
        assert answer["status"] == "error"
        assert "no-such-model" in answer["message"]


# ── the pipes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_setting_without_sense_is_one_sentence_and_status_2() -> None:
    with bridge("echo", stderr=subprocess.PIPE, AKIDB_EMBEDDING_DTYPE="bfloat16") as peer:
        out, said = peer.process.communicate(timeout=20)
    assert (out, peer.process.returncode) == (b"", 2)
    assert said.decode() == "embedpool-bridge: AKIDB_EMBEDDING_DTYPE is float32, q8, q4 or uint8, not 'bfloat16'\n"


def test_a_peer_that_leaves_without_reading_ends_the_bridge() -> None:
    with serving() as server, bridge(ECHO, EMBEDPOOL_ENDPOINT=server.endpoint) as peer:
        peer.load()
        for i in range(40):
            peer.say("embed_batch", model=ECHO, inputs=[f"text {i}"] * 32, normalize=True)
        assert peer.process.stdout is not None and peer.process.stdin is not None
        peer.process.stdout.close()
        assert peer.process.wait(10) == 0
        peer.process.stdin.close()


def test_ctrl_c_is_for_akidb() -> None:
    with serving() as server, bridge(ECHO, EMBEDPOOL_ENDPOINT=server.endpoint) as peer:
        peer.load()
        kill(peer.process.pid, signal.SIGINT)
        assert peer.embed(["a"])["status"] == "ok"


@settings(max_examples=6, deadline=None)
@given(sent=st.lists(LINES, max_size=20), seed=st.integers(0, 2**32))
def test_random_lines_on_stdin_give_replies_and_nothing_else_on_stdout(sent: list[bytes], seed: int) -> None:
    ping = b'{"method":"ping","params":{}}'
    mixed = [*sent, *[ping] * 5]
    random.Random(seed).shuffle(mixed)
    done = subprocess.run(
        [BRIDGE, "onnx_server.py"],
        input=b"\n".join(mixed),
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "EMBEDPOOL_ENDPOINT": "ipc:///nowhere/s.sock", "EMBEDPOOL_BRIDGE_TIMEOUT_S": "0.05"},
    )
    assert done.returncode == 0
    asked = [line for line in mixed if line.strip()]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for line, answer in zip(asked, answers, strict=True):
        assert answer["status"] in ("ok", "error")
        assert line != ping or answer == {"status": "ok", "message": "pong"}
