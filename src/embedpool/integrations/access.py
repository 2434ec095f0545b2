"""How an integration reaches its pool: which one, with which options, from threads, event loops and copies of itself.

Rules
1. Nothing is connected before the first call: frameworks build, describe and copy embedders where no pool runs.
2. A Client or Pool that was handed in is used and never closed; what is made here is closed here.
3. A coroutine is served by an AsyncClient of its own event loop: cancelling it cancels its work, and no thread waits for it.
4. A deep copy within a process shares the client, which threads may share; a pickle carries the endpoint and the options, and
   connects anew where it is loaded.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from embedpool.client import AsyncClient, Client
from embedpool.client.documents import Keywords
from embedpool.pool import START_S, Pool
from embedpool.protocol import ModelCard, Truncate

Float32 = NDArray[np.float32]
Array = NDArray[Any]


class Reach(TypedDict, total=False):
    """What the constructors of all embedders take by keyword; see Settings."""

    endpoint: str | None
    expect_fingerprint: str
    truncate: Truncate
    query_prompt: str | None
    document_prompt: str | None
    timeout_s: float


class Given(Reach, total=False):
    """And of those whose calls cannot say it."""

    model: str
    dim: int
    normalize: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`endpoint` None finds the pool, as Client does; `expect_fingerprint`, `model`, `dim`, `normalize` and `truncate` are
    those of Client too. `query_prompt` and `document_prompt` name prompts of the model; None: its "query" and "document", if it
    has them. `timeout_s` bounds a query, and each chunk of documents."""

    endpoint: str | None = None
    expect_fingerprint: str = ""
    model: str = ""
    dim: int = 0
    normalize: bool = True
    truncate: Truncate = True
    query_prompt: str | None = None
    document_prompt: str | None = None
    timeout_s: float = 60.0

    def keywords(self, kind: Literal["query", "document"]) -> Keywords:
        return {
            "model": self.model,
            "dim": self.dim,
            "normalize": self.normalize,
            "truncate": self.truncate,
            "prompt_name": self.query_prompt if kind == "query" else self.document_prompt,
            "priority": "auto" if kind == "query" else "bulk",
        }


def prompted(card: ModelCard, *names: str) -> Keywords:
    """The first of these prompts that the model has, or none, said so that embed_documents adds none of its own."""
    for name in names:
        if name in card.prompts:
            return {"prompt_name": name}
    return {"prompt": ""} if "document" in card.prompts else {}


class Access:
    """Queries and documents to float32 vectors, blocking and as coroutines. Any number of threads and loops may share one."""

    def __init__(self, settings: Settings, client: Client | None = None) -> None:
        self._settings = settings
        self._given = client
        self._made: Client | None = None
        self._of_loops: dict[asyncio.AbstractEventLoop, AsyncClient] = {}
        self._lock = threading.Lock()

    def reachable(self) -> Settings:
        """With the endpoint and the fingerprint of a client that was handed in: what reaches the same pool from elsewhere, now.
        Starts a Pool that has not been started yet, which has no endpoint before. Raises Cancelled for one that was closed."""
        if isinstance(self._given, Pool) and not self._given.pid:
            self._given.model(timeout_s=START_S)
        return self._settings if self._given is None else replace(self._settings, **_of(self._given))

    def lasting(self) -> dict[str, Any]:
        """The settings as plain values for a file that is read another day: with the endpoint of a Client, but without that of
        a Pool, which is gone with its process. Connects to nothing."""
        found = asdict(self._settings)
        if self._given is not None:
            found |= _of(self._given)
        if isinstance(self._given, Pool):
            found["endpoint"] = None
        return found

    @property
    def client(self) -> Client:
        """The client handed in, or our own, made at the first use."""
        if self._given is not None:
            return self._given
        with self._lock:
            if self._made is None:
                self._made = Client(self._settings.endpoint, expect_fingerprint=self._settings.expect_fingerprint)
            return self._made

    def warm_up(self) -> ModelCard:
        """Connects, and starts a Pool that was handed in; the model that will answer. Raises NotRunning, UnknownModel."""
        return self.client.model(self._settings.model)

    async def awarm_up(self) -> ModelCard:
        """As `warm_up`."""
        return await (await self._of_this_loop()).model(self._settings.model)

    def query(self, text: str) -> Float32:
        """float32[dim]. Raises what Client.embed_query does."""
        return self.client.embed_query(text, timeout_s=self._settings.timeout_s, **self._settings.keywords("query"))

    def queries(self, texts: Sequence[str]) -> Float32:
        """float32[n, dim]: several queries at once, in the class that their number asks for."""
        client, keywords = self.client, self._settings.keywords("query")
        if keywords["prompt_name"] is None:
            del keywords["prompt_name"]
            keywords.update(prompted(client.model(self._settings.model), "query"))
        return client.embed_documents(texts, timeout_s=self._settings.timeout_s, **keywords)

    def documents(self, texts: Iterable[str], *, progress: bool = False) -> Float32:
        """float32[n, dim]. Raises what Client.embed_documents does."""
        return self.client.embed_documents(
            texts,
            timeout_s=self._settings.timeout_s,
            progress=progress,
            **self._settings.keywords("document"),
        )

    def plain(self, texts: Iterable[str], keywords: Keywords, *, progress: bool) -> Array:
        """Of the settings only model, truncate and timeout_s; all else is the caller's. As Client.embed_documents."""
        settings = self._settings
        whole: Keywords = {"model": settings.model, "truncate": settings.truncate, "priority": "auto", **keywords}
        return self.client.embed_documents(texts, timeout_s=settings.timeout_s, progress=progress, **whole)

    async def aquery(self, text: str) -> Float32:
        """As `query`."""
        client = await self._of_this_loop()
        return await client.embed_query(text, timeout_s=self._settings.timeout_s, **self._settings.keywords("query"))

    async def adocuments(self, texts: Iterable[str], *, progress: bool = False) -> Float32:
        """As `documents`."""
        client = await self._of_this_loop()
        return await client.embed_documents(
            texts,
            timeout_s=self._settings.timeout_s,
            progress=progress,
            **self._settings.keywords("document"),
        )

    async def _of_this_loop(self) -> AsyncClient:
        loop = asyncio.get_running_loop()
        found = self._of_loops.get(loop)
        if found is not None:
            return found
        settings = await asyncio.to_thread(self.reachable)  # may start a pool
        with self._lock:
            for ended in [each for each in self._of_loops if each.is_closed()]:
                del self._of_loops[ended]  # collected, it closes its socket
            if loop not in self._of_loops:
                self._of_loops[loop] = AsyncClient(settings.endpoint, expect_fingerprint=settings.expect_fingerprint)
            return self._of_loops[loop]

    def close(self) -> None:
        """Ends the sessions that were made here; the next call would make new ones. Clients of loops that run are closed by
        their loops, a moment later."""
        with self._lock:
            made, self._made = self._made, None
            of_loops, self._of_loops = self._of_loops, {}
        if made is not None:
            made.close()
        for loop, client in of_loops.items():
            if loop.is_running():  # otherwise the client is closed by being collected
                asyncio.run_coroutine_threadsafe(client.close(), loop)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Access], tuple[Settings]]:
        return Access, (self.reachable(),)


class _Place(TypedDict):
    endpoint: str
    expect_fingerprint: str


def _of(client: Client) -> _Place:
    return {"endpoint": client.endpoint, "expect_fingerprint": client.expect_fingerprint}
