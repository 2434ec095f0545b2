"""Haystack with a pool, to the pipeline that finds the right document, on MiniLM."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.core.errors import PipelineRuntimeError
from haystack.document_stores.in_memory import InMemoryDocumentStore

from embedpool import Client, Pool
from embedpool.errors import BadRequest, NotRunning, TextTooLong
from embedpool.integrations.haystack import PoolDocumentEmbedder, PoolTextEmbedder
from tests.support import Server, serving

TEXTS = ["Mars is called the red planet.", "Bread is baked in a hot oven.", "A mutex protects a counter."]
QUESTIONS = ["Which planet looks red?", "How do I bake a loaf?", "How do threads share a number safely?"]
NOWHERE = "ipc:///nowhere/embedpool.sock"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(model="minilm") as made:
        yield made


@pytest.fixture
def plain(server: Server) -> Iterator[Client]:
    with Client(server.endpoint) as client:
        yield client


def _search(endpoint: str) -> tuple[Pipeline, list[Document]]:
    store = InMemoryDocumentStore()
    indexing = Pipeline()
    embedder = PoolDocumentEmbedder(endpoint=endpoint)
    indexing.add_component("embed", embedder)
    embedded: list[Document] = indexing.run({"embed": {"documents": [Document(content=text) for text in TEXTS]}})["embed"][
        "documents"
    ]
    embedder.close()
    store.write_documents(embedded)
    search = Pipeline()
    search.add_component("embed", PoolTextEmbedder(endpoint=endpoint))
    search.add_component("find", InMemoryEmbeddingRetriever(store, top_k=1))
    search.connect("embed.embedding", "find.query_embedding")
    return search, embedded


def test_a_haystack_pipeline_finds_the_right_document(server: Server, plain: Client) -> None:
    search, embedded = _search(server.endpoint)
    assert [document.embedding for document in embedded] == plain.embed(TEXTS).tolist()
    hits = [search.run({"embed": {"text": question}})["find"]["documents"][0].content for question in QUESTIONS]
    assert hits == TEXTS
    # Haystack reads only modules that its caller trusts.
    read = Pipeline.loads(search.dumps(), allowed_modules=["embedpool.integrations.haystack"])
    again = read.run({"embed": {"text": QUESTIONS[0]}})["find"]
    assert "documents" in again
    for pipeline in (search, read):
        pipeline.get_component("embed").close()


def test_haystack_components_answer_as_coroutines_and_warm_up(server: Server) -> None:
    async def ask() -> bool:
        text, documents = PoolTextEmbedder(endpoint=server.endpoint), PoolDocumentEmbedder(endpoint=server.endpoint)
        await text.warm_up_async()
        await documents.warm_up_async()
        query = (await text.run_async("a text"))["embedding"]
        found = (await documents.run_async([Document(content="a text")]))["documents"][0].embedding
        text.close()
        documents.close()
        await asyncio.sleep(0.05)
        return bool(query == found)

    assert asyncio.run(ask())
    embedder = PoolTextEmbedder(endpoint=server.endpoint)
    embedder.warm_up()
    embedder.close()
    with pytest.raises(NotRunning):
        PoolTextEmbedder(client=Client(NOWHERE, connect_timeout_s=0.2)).warm_up()


def test_metadata_fields_are_embedded_before_the_content_and_the_given_documents_stay_as_they_were(plain: Client) -> None:
    embedder = PoolDocumentEmbedder(client=plain, meta_fields_to_embed=["title", "year", "gone"], embedding_separator=" | ")
    given = [Document(content="the text", meta={"title": "A title", "year": 1850}), Document(content=None, meta={"gone": None})]
    found = embedder.run(given)["documents"]
    assert [document.embedding for document in found] == plain.embed(["A title | 1850 | the text", ""]).tolist()
    assert [document.id for document in found] == [document.id for document in given]
    assert all(document.embedding is None for document in given)


def test_haystack_components_are_written_and_read_with_all_their_settings(plain: Client) -> None:
    embedder = PoolDocumentEmbedder(client=plain, meta_fields_to_embed=["title"], embedding_separator="; ", dim=64)
    read = PoolDocumentEmbedder.from_dict(embedder.to_dict())
    assert read.to_dict() == embedder.to_dict()
    document = Document(content="a text", meta={"title": "T"})
    assert read.run([document]) == embedder.run([document])
    read.close()
    assert PoolTextEmbedder(client=Pool("echo")).to_dict()["init_parameters"]["endpoint"] is None


def test_what_is_no_list_of_documents_is_a_bad_request_also_within_a_pipeline(plain: Client) -> None:
    with pytest.raises(BadRequest, match=r"haystack\.Document"):
        PoolDocumentEmbedder(client=plain).run(["a text"])  # type: ignore[list-item]
    pipeline = Pipeline()
    pipeline.add_component("embed", PoolTextEmbedder(client=plain, truncate=False))
    with pytest.raises(PipelineRuntimeError) as raised:
        pipeline.run({"embed": {"text": "word " * 1000}})
    assert isinstance(raised.value.__cause__, TextTooLong)
