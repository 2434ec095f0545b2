"""Vectors are right: against sentence-transformers in fp32, and against the plainest run of the very weights served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedpool import Pool
from embedpool.models.tokenizer import BERT_UNCASED, Tokenizer

FIXTURE = Path(__file__).parent.parent / "fixtures" / "minilm_reference.npz"


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def texts(reference: dict[str, np.ndarray]) -> list[str]:
    found: list[str] = json.loads(str(reference["texts"]))
    return found


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool("minilm", workers=2) as made:
        made.embed(["warm"])
        yield made


def test_tokens_are_those_of_the_models_own_tokenizer(reference: dict[str, np.ndarray], texts: list[str]) -> None:
    found = Tokenizer(BERT_UNCASED, 256).tokens(texts, "right")
    assert found == json.loads(str(reference["tokens"]))


def test_fifty_varied_texts_agree_with_sentence_transformers_in_fp32(
    pool: Pool, reference: dict[str, np.ndarray], texts: list[str]
) -> None:
    varied = int(reference["varied"])
    assert varied == 50
    cosines = np.sum(pool.embed(texts[:varied]) * reference["fp32"][:varied], axis=1)
    assert cosines.min() >= 0.999
    # Other languages and nonsense suffer more from weights of 8 bits (worst here 0.996); what is embedpool's own share is in
    # the next test.
    odd = np.sum(pool.embed(texts[varied:]) * reference["fp32"][varied:], axis=1)
    assert odd.min() >= 0.995


def test_every_text_agrees_with_a_plain_run_of_the_same_weights(
    pool: Pool, reference: dict[str, np.ndarray], texts: list[str]
) -> None:
    found = pool.embed(texts)
    assert np.abs(np.linalg.norm(found, axis=1) - 1.0).max() < 1e-6
    assert np.sum(found * reference["int8"], axis=1).min() >= 0.999999


def test_a_text_gives_the_same_bytes_alone_in_any_batch_and_under_load(pool: Pool, texts: list[str]) -> None:
    alone = np.stack([pool.embed([text])[0] for text in texts])
    random = np.random.default_rng(7)
    for _ in range(6):
        order = random.permutation(len(texts))
        assert np.array_equal(pool.embed([texts[i] for i in order]), alone[order])
        chosen = random.choice(len(texts), 7, replace=False)
        assert np.array_equal(pool.embed_documents([texts[i] for i in chosen]), alone[chosen])


def test_the_published_row_of_minilm_is_reproduced(pool: Pool) -> None:
    published = [-0.077885, -0.033265, 0.019733, 0.007262, -0.0156, -0.022034, -0.030759, -0.009298]
    assert np.abs(pool.embed(["What is Deep Learning?"])[0, :8] - published).max() < 4e-3
