"""A pool as LangChain's `Embeddings`: for any vector store or retriever that takes one.

Errors are embedpool's own. It can be pickled and deep-copied; see integrations.access for what a copy shares.
"""

from __future__ import annotations

from typing import Unpack

from langchain_core.embeddings import Embeddings

from embedpool.client import Client
from embedpool.integrations.access import Access, Given, Settings


class PoolEmbeddings(Embeddings):
    """`PoolEmbeddings()` finds the pool; `PoolEmbeddings(client=pool)` uses a Client or Pool that you close yourself.

    Keywords: those of access.Settings. Queries get the model's query prompt and documents its document prompt, if it has them.
    Raises BadRequest and its children, Overloaded, TimedOut, NotRunning, as Client does. Threads and loops may share one.
    """

    def __init__(self, *, client: Client | None = None, **given: Unpack[Given]) -> None:
        self._access = Access(Settings(**given), client)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text, in order, of `dim` values each."""
        found: list[list[float]] = self._access.documents(texts).tolist()
        return found

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text, of `dim` values."""
        found: list[float] = self._access.query(text).tolist()
        return found

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As embed_documents; cancelling it cancels its work in the pool."""
        found: list[list[float]] = (await self._access.adocuments(texts)).tolist()
        return found

    async def aembed_query(self, text: str) -> list[float]:
        """As embed_query; cancelling it cancels its work in the pool."""
        found: list[float] = (await self._access.aquery(text)).tolist()
        return found

    def close(self) -> None:
        """Ends the sessions that this object has made. A client that was handed in stays open."""
        self._access.close()
