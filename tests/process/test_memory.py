"""Weights and vocabulary are in memory once, however many workers there are, and a further worker is there at once.

With the exact shape of EmbeddingGemma-300M, because that is where it matters: copies would cost 437 MB (fp32) or 136 MB (q8) of
weights and 96 MB of vocabulary per worker.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from embedpool import Client, Pool
from embedpool.memory import pss_bytes
from tests.fixtures import embeddinggemma
from tests.support import forkserver_of, kill, wait_until, workers_of

FURTHER_MB = 50
START_S = 1.0
TEXTS = ["a short text", "one that is somewhat longer than the other one was, and has more words in it"] * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(directory of the model, cache)."""
    place = tmp_path_factory.mktemp("embeddinggemma")
    yield str(embeddinggemma.directory(place / "model")), str(place / "cache")
    for file in (*place.rglob("*.safetensors"), *place.rglob("*.onnx.data")):
        file.unlink()  # 5 GB that pytest would keep for three runs


def _ready(pool: Pool) -> list[int]:
    """Process ids of the workers that take jobs."""
    return [worker["pid"] for worker in json.loads(pool.status())["workers"] if worker["state"] in ("idle", "busy")]


def _pool_mb(pool: Pool, workers: int) -> float:
    """PSS of forkserver and workers, every one of which has computed."""
    wait_until(lambda: len(_ready(pool)) == workers, 60.0, "all workers")
    for _ in range(4):
        pool.embed(TEXTS * workers, timeout_s=120)
    return sum(map(pss_bytes, (forkserver_of(pool.pid), *workers_of(pool.pid)))) / 1e6


@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["fp32", "q8"])
def test_a_further_worker_shares_weights_and_vocabulary_and_starts_within_a_second(
    precision: str, model: tuple[str, str]
) -> None:
    directory, cache = model
    settings = {"precision": precision, "cache": cache, "threads_per_worker": 1, "pin": False}
    with Pool(directory, workers=1, **settings) as pool:
        one = _pool_mb(pool, 1)
        vectors = pool.embed(TEXTS)
        seconds = []
        for _ in range(3):
            (victim,) = _ready(pool)
            kill(victim)
            began = time.monotonic()
            wait_until(lambda victim=victim: _ready(pool) not in ([], [victim]), 20.0)
            seconds.append(time.monotonic() - began)
    with Pool(directory, workers=3, **settings) as pool:
        three = _pool_mb(pool, 3)
        assert (pool.embed(TEXTS) == vectors).all()
    assert (three - one) / 2 <= FURTHER_MB, f"{one:.0f} MB with one worker, {three:.0f} MB with three"
    assert min(seconds) <= START_S, f"from the end of one worker to the next one that is ready: {seconds}"
    print(f"{precision}: {one:.0f} MB, {(three - one) / 2:.1f} MB per further worker, start {min(seconds):.2f} s")


@pytest.mark.timeout(300)
def test_a_query_interrupts_even_a_single_long_document(model: tuple[str, str]) -> None:
    directory, cache = model
    document, query = "many words of a long document " * 150, "a query"
    with Pool(directory, workers=1, cache=cache) as pool, Client(pool.endpoint) as other:
        alone, wanted = pool.embed([query]), pool.embed([document], timeout_s=120)
        began = time.monotonic()
        pool.embed([document], timeout_s=120, priority="bulk")
        whole_s = time.monotonic() - began
        found: list[np.ndarray] = []
        busy = threading.Thread(target=lambda: found.append(pool.embed([document], timeout_s=120, priority="bulk")))
        busy.start()
        waits = []
        for _ in range(3):
            time.sleep(whole_s / 4)  # it is in the middle of the document
            began = time.monotonic()
            assert np.array_equal(other.embed([query]), alone)
            waits.append(time.monotonic() - began)
            assert busy.is_alive(), "the document was done before the query was asked"
        busy.join()
        assert np.array_equal(found[0], wanted)
    assert sorted(waits)[1] < whole_s / 4, f"queries took {waits} s beside a document of {whole_s:.1f} s"
