"""A pool as Haystack's components: a text embedder for queries and a document embedder.

Raised errors are embedpool's own; a Haystack pipeline wraps what a component raises, with ours as the cause. A pipeline that is
written down holds the settings, without the endpoint of a private Pool, which would be gone when it is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self, Unpack

from haystack import Document, component, default_from_dict, default_to_dict

from embedpool.client import Client
from embedpool.errors import BadRequest
from embedpool.integrations.access import Access, Float32, Given, Settings


@component
class PoolTextEmbedder:
    """`PoolTextEmbedder()` finds the pool; `client=` is a Client or Pool that you close yourself. Keywords: access.Settings.

    Text gets the model's query prompt, if it has one. Raises BadRequest and its children, Overloaded, TimedOut, NotRunning, as
    Client does. Threads and loops may share one.
    """

    def __init__(self, *, client: Client | None = None, **given: Unpack[Given]) -> None:
        self._access = Access(Settings(**given), client)

    def warm_up(self) -> None:
        """Connects, so that the first text does not wait for it. Raises NotRunning, UnknownModel. Need not be called."""
        self._access.warm_up()

    async def warm_up_async(self) -> None:
        """As warm_up, for this event loop."""
        await self._access.awarm_up()

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """{"embedding": one vector of `dim` values}."""
        return {"embedding": self._access.query(text).tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As run; cancelling it cancels its work in the pool."""
        return {"embedding": (await self._access.aquery(text)).tolist()}

    def to_dict(self) -> dict[str, Any]:
        """Settings by name; connects to nothing."""
        found: dict[str, Any] = default_to_dict(self, **self._access.lasting())
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        made: Self = default_from_dict(cls, data)
        return made

    def close(self) -> None:
        """Ends the sessions that this object has made. A client that was handed in stays open."""
        self._access.close()


@component
class PoolDocumentEmbedder:
    """As PoolTextEmbedder, for documents, with the model's document prompt if it has one.

    Embedded are the document's metadata fields named in `meta_fields_to_embed`, those that it has, and then its content, with
    `embedding_separator` between them. `progress_bar` draws one on stderr.
    """

    def __init__(
        self,
        *,
        client: Client | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = False,
        **given: Unpack[Given],
    ) -> None:
        self._access = Access(Settings(**given), client)
        self._fields = list(meta_fields_to_embed or ())
        self._separator = embedding_separator
        self._progress_bar = progress_bar

    def warm_up(self) -> None:
        """As PoolTextEmbedder.warm_up."""
        self._access.warm_up()

    async def warm_up_async(self) -> None:
        """As warm_up, for this event loop."""
        await self._access.awarm_up()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """{"documents": copies of them in order, each with its embedding}. The given ones are not changed."""
        vectors = self._access.documents(self._texts(documents), progress=self._progress_bar)
        return {"documents": _with_embeddings(documents, vectors)}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As run; cancelling it cancels its work in the pool."""
        vectors = await self._access.adocuments(self._texts(documents), progress=self._progress_bar)
        return {"documents": _with_embeddings(documents, vectors)}

    def _texts(self, documents: list[Document]) -> list[str]:
        if not isinstance(documents, list) or not all(isinstance(each, Document) for each in documents):
            raise BadRequest("documents is a list of haystack.Document; a query's text is for PoolTextEmbedder")
        return [self._separator.join(self._parts(document)) for document in documents]

    def _parts(self, document: Document) -> list[str]:
        named = [document.meta.get(name) for name in self._fields]
        return [*(str(value) for value in named if value is not None), document.content or ""]

    def to_dict(self) -> dict[str, Any]:
        """Settings by name; connects to nothing."""
        found: dict[str, Any] = default_to_dict(
            self,
            meta_fields_to_embed=self._fields,
            embedding_separator=self._separator,
            progress_bar=self._progress_bar,
            **self._access.lasting(),
        )
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        made: Self = default_from_dict(cls, data)
        return made

    def close(self) -> None:
        """As PoolTextEmbedder.close."""
        self._access.close()


def _with_embeddings(documents: list[Document], vectors: Float32) -> list[Document]:
    rows = vectors.tolist()
    return [replace(document, embedding=row) for document, row in zip(documents, rows, strict=True)]
