"""`--provider openvino`: the same texts' vectors as ONNX Runtime's own kernels give, but for rounding; the same bytes in any
batch; and queries that are answered although a run cannot be interrupted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedpool import Client, Pool
from embedpool.errors import ModelError
from embedpool.models.artifact import prepare
from embedpool.models.encoder import OnnxEncoder, load_tokenizer
from embedpool.models.offered import offered
from embedpool.models.providers import NEEDS
from embedpool.models.resolve import Wanted, resolve
from tests.fixtures import tiny
from tests.fixtures.random_models import FIRST_ID, MODELS, VOCABULARY, write_directory
from tests.support import forkserver_of, workers_of

pytest.importorskip("onnxruntime_ep_openvino", reason="the extra openvino is not installed (it has no wheel but for x86-64)")

FLAGS = offered("openvino").flags
HERE = [precision for precision in ("f32", "bf16") if not NEEDS[precision] or FLAGS & set(NEEDS[precision])]
TEXTS = ["a short text", "", "one that is somewhat longer than the other one was, and has more words in it", "z " * 300]
LONGEST = 320
KINDS = ("bert-mean", "bert-cls", "roberta", "gemma", "gemma-wide", "gemma-causal", "qwen", "qwen-sliding")


def of(precision: str) -> dict[str, Any]:
    return {"provider": "openvino", "provider_options": f"precision={precision}"}


@pytest.fixture(scope="module")
def plain() -> Iterator[np.ndarray]:
    """The vectors of TEXTS by ONNX Runtime's own kernels."""
    with Pool("minilm", workers=1) as pool:
        yield np.array(pool.embed(TEXTS))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("precision", HERE)
def test_a_pool_gives_the_models_vectors_but_for_rounding_under_a_fingerprint_of_its_own(
    precision: str, plain: np.ndarray
) -> None:
    with Pool("minilm", workers=2, **of(precision)) as pool:
        found = np.array(pool.embed(TEXTS))
        assert cosines(found, plain).min() >= {"f32": 0.999999, "bf16": 0.9995}[precision]
        card = pool.model()
        assert card.precision == {"f32": "q8", "bf16": "bf16"}[precision]
        for text, vector in zip(TEXTS, found, strict=True):
            assert np.array_equal(pool.embed([text])[0], vector), "the same bytes alone and in a batch"
    with Pool("minilm", workers=1) as pool:
        assert pool.model().fingerprint != card.fingerprint


@pytest.mark.parametrize("precision", HERE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bytes_whatever_is_beside_it(kind: str, precision: str, tmp_path: Path) -> None:
    """Of every architecture that is built here. That f32 gives the vectors of the graph itself is held to when it is prepared;
    random weights are harder on bf16 than real ones."""
    encoder = _encoder(kind, precision, tmp_path)
    spec, random = encoder.spec, np.random.default_rng(7)
    for length in (1, 2, 15, 16, 17, 31, 33, 63, 90, 128, 161, 257, LONGEST):
        row = random.integers(FIRST_ID, VOCABULARY, length).tolist()
        alone = encoder.run([row], spec.width(length))
        for count in (2, 3, 5, 8):
            width = min(spec.width(length) + spec.width_step * int(random.integers(0, 3)), spec.max_tokens)
            shorter = [int(n) for n in random.integers(1, width + 1, count - 1)]
            rows = [random.integers(FIRST_ID, VOCABULARY, n).tolist() for n in shorter]
            place = int(random.integers(0, count))
            rows.insert(place, row)
            found = encoder.run(rows, width)
            assert np.array_equal(found[place], alone[0]), f"{length} tokens as row {place} of {count}, {width} wide"


def _encoder(kind: str, precision: str, place: Path) -> OnnxEncoder:
    directory = write_directory(place / "model", MODELS[kind].of())
    (directory / "tokenizer.json").write_text(tiny.tokenizer())
    wanted = Wanted(str(directory), max_tokens=LONGEST, cache=str(place), **of(precision))
    spec = prepare(resolve(wanted), place / "cache").spec
    return OnnxEncoder(spec, 1, load_tokenizer(spec))


def test_queries_are_answered_beside_bulk_work_that_they_cannot_interrupt(plain: np.ndarray) -> None:
    bulk = [f"{number} " + "many words of a long document " * 40 for number in range(120)]
    with Pool("minilm", workers=1, **of("f32")) as pool, Client(pool.endpoint) as other:
        wanted, alone = np.array(pool.embed(bulk, timeout_s=100)), np.array(other.embed(TEXTS[:1]))
        found: list[np.ndarray] = []
        busy = threading.Thread(target=lambda: found.append(np.array(pool.embed(bulk, timeout_s=100, priority="bulk"))))
        busy.start()
        asked = 0
        while busy.is_alive():
            assert np.array_equal(other.embed(TEXTS[:1], timeout_s=60), alone)
            asked += 1
        busy.join()
    assert asked >= 5, "the queries waited for all of the bulk work"
    assert np.array_equal(found[0], wanted)
    assert cosines(alone, plain[:1]).min() >= 0.999999


def test_the_forkserver_has_no_threads_of_the_provider_and_a_workers_stay_on_its_core() -> None:
    """What may leave it are the thread that waits for queries, and those of libraries that were loaded before the pinning."""

    def roaming(pool: Pool) -> int:
        (pid,) = workers_of(pool.pid)
        masks = [os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]
        assert min(map(len, masks)) == 1, "the worker is not pinned"
        return sum(len(mask) > 1 for mask in masks)

    found = []
    for settings in ({}, of("f32")):
        with Pool("minilm", workers=1, **settings) as pool:
            pool.embed(TEXTS * 8)
            found.append(roaming(pool))
            forkserver = forkserver_of(pool.pid)
            assert "openvino" not in Path(f"/proc/{forkserver}/maps").read_text()
    assert found[1] <= found[0], "OpenVINO's threads run on other cores than the worker's"


def test_a_worker_computes_on_its_core_and_on_no_other() -> None:
    """OpenVINO gives the thread that computes a mask of its own while it does; the worker was then taken for one that had lost
    its core, and replaced, again and again."""
    bulk = [f"{number} " + "many words of a long document " * 40 for number in range(200)]
    with Pool("minilm", workers=1, **of("f32")) as pool:
        (pid,) = workers_of(pool.pid)
        (core,) = os.sched_getaffinity(pid)
        busy = threading.Thread(target=lambda: pool.embed(bulk, timeout_s=100, priority="bulk"))
        busy.start()
        masks = []
        while busy.is_alive():
            masks.append(os.sched_getaffinity(pid))
            busy.join(0.01)
        assert len(masks) > 20
        assert all(mask == {core} for mask in masks)
        assert workers_of(pool.pid) == [pid]


def test_what_cannot_be_had_is_one_sentence_before_anything_is_started() -> None:
    for settings, words in (
        ({"provider": "cuda"}, "onnxruntime-gpu"),
        ({"provider": "openvino", "provider_options": "precison=bf16"}, "precision=bf16"),
        ({"provider": "openvino", "max_tokens": 8}, "steps of 16"),
    ):
        with pytest.raises(ModelError, match=words):
            Pool("minilm", workers=1, **settings).start()
