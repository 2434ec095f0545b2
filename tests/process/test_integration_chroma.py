"""Chroma with a pool. Chroma is a large installation that `make test` does without: pip install chromadb to run these."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedpool import Client, Pool
from embedpool.errors import BadRequest, WrongFingerprint
from tests.support import Server, serving

chromadb = pytest.importorskip("chromadb", reason="chromadb is not part of the test extra: 225 MB for these tests alone")

from embedpool.integrations.chroma import PoolEmbeddingFunction  # noqa: E402 - needs chromadb

TEXTS = ["Mars is called the red planet.", "Bread is baked in a hot oven.", "A mutex protects a counter."]
QUESTIONS = ["Which planet looks red?", "How do I bake a loaf?", "How do threads share a number safely?"]


@pytest.fixture(scope="module", autouse=True)
def _threads_of_chroma() -> None:
    """Its own threads and descriptors come with the first client and stay."""
    collection = chromadb.EphemeralClient().create_collection("first", embedding_function=None)
    collection.add(ids=["0"], embeddings=[[1.0, 0.0]])
    collection.query(query_embeddings=[[1.0, 0.0]], n_results=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(model="minilm") as made:
        yield made


def _hits(collection: Any) -> list[str]:
    return [hits[0] for hits in collection.query(query_texts=QUESTIONS, n_results=1)["documents"]]


def test_a_collection_finds_the_right_text(server: Server) -> None:
    function = PoolEmbeddingFunction(endpoint=server.endpoint)
    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=function)
    collection.add(ids=["0", "1", "2"], documents=TEXTS)
    assert _hits(collection) == TEXTS
    with Client(server.endpoint) as client:
        stored = collection.get(ids=["0", "1", "2"], include=["embeddings"])["embeddings"]
        assert np.allclose(stored, client.embed(TEXTS))
    function.close()


def test_a_collection_on_disk_is_opened_again_with_the_function_that_its_configuration_names(
    server: Server, tmp_path: Path
) -> None:
    function = PoolEmbeddingFunction(endpoint=server.endpoint, dim=128)
    with chromadb.PersistentClient(str(tmp_path)) as chroma:
        collection = chroma.create_collection("texts", embedding_function=function)
        collection.add(ids=["0", "1", "2"], documents=TEXTS)
    function.close()
    with chromadb.PersistentClient(str(tmp_path)) as chroma:
        reopened = chroma.get_collection("texts")
        assert reopened.configuration_json["embedding_function"]["name"] == "embedpool"
        assert reopened.configuration_json["embedding_function"]["config"] == function.get_config()
        assert _hits(reopened) == TEXTS  # by a function that Chroma has built


def test_a_configuration_is_json_and_names_no_private_pool() -> None:
    function = PoolEmbeddingFunction(client=Pool("echo", expect_fingerprint="f"), dim=64)
    config = json.loads(json.dumps(function.get_config()))
    assert (config["endpoint"], config["expect_fingerprint"], config["dim"]) == (None, "f", 64)
    assert PoolEmbeddingFunction.build_from_config(config).get_config() == config
    assert not function.is_legacy()
    with pytest.raises(BadRequest, match="colour"):
        PoolEmbeddingFunction.build_from_config({"colour": "red"})


def test_a_configuration_cannot_change_to_vectors_of_another_kind() -> None:
    function = PoolEmbeddingFunction()
    function.validate_config_update({"dim": 64, "endpoint": None}, {"dim": 64, "endpoint": "ipc:///elsewhere"})
    with pytest.raises(BadRequest, match="dim cannot change"):
        function.validate_config_update({"dim": 64}, {"dim": 128})
    with pytest.raises(WrongFingerprint):
        function.validate_config_update({"expect_fingerprint": "a"}, {"expect_fingerprint": "b"})


def test_an_error_of_the_pool_reaches_who_adds(server: Server) -> None:
    function = PoolEmbeddingFunction(endpoint=server.endpoint, expect_fingerprint="another")
    collection = chromadb.EphemeralClient().create_collection("refused", embedding_function=function)
    with pytest.raises(WrongFingerprint):
        collection.add(ids=["0"], documents=TEXTS[:1])
    function.close()
