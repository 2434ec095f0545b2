"""A pool as LlamaIndex's `BaseEmbedding`: for `Settings.embed_model`, an index, or a step of an ingestion pipeline.

Errors are embedpool's own. Its fields are what is written by to_dict and pickled; an ingestion pipeline's cache is keyed by
them, so set `expect_fingerprint` where such a cache outlives the pool's model.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import ConfigDict, Field, FieldSerializationInfo, PrivateAttr, field_serializer

from embedpool.client import Client
from embedpool.integrations.access import Access, Settings
from embedpool.protocol import Truncate

_SETTINGS = tuple(field.name for field in fields(Settings) if field.name != "model")


class PoolEmbedding(BaseEmbedding):
    """`PoolEmbedding()` finds the pool; `PoolEmbedding(client=pool)` uses a Client or Pool that you close yourself.

    Fields: those of access.Settings, but that the model is `model_name` as everywhere in LlamaIndex, and LlamaIndex's own.
    Queries get the model's query prompt and texts its document prompt, if it has them. Raises BadRequest and its children,
    Overloaded, TimedOut, NotRunning, as Client does. Threads and loops may share one.
    """

    model_config = ConfigDict(extra="forbid")  # a misspelt field would be a default otherwise

    model_name: str = Field(default="", description="One of the pool's models; empty: the pool's only one.")
    # A call of get_text_embedding_batch; LlamaIndex's 10 would leave workers idle between calls.
    embed_batch_size: int = Field(default=256, gt=0, le=2048, description="Texts per call.")
    endpoint: str | None = Field(default=None, description="Where the pool is; None finds it.")
    expect_fingerprint: str = Field(default="", description="Vectors of another fingerprint are refused.")
    dim: int = Field(default=0, ge=0, description="The first dim values of each vector, then normalised; 0: all.")
    normalize: bool = Field(default=True, description="Vectors of unit length.")
    truncate: Truncate = Field(default=True, description="False refuses texts longer than the model reads.")
    query_prompt: str | None = Field(default=None, description="A prompt of the model; None: its query prompt.")
    document_prompt: str | None = Field(default=None, description="A prompt of the model; None: its document prompt.")
    timeout_s: float = Field(default=60.0, gt=0, description="For a query, and for each chunk of texts.")
    _access: Access = PrivateAttr()

    def __init__(self, *, client: Client | None = None, **given: Any) -> None:
        super().__init__(**given)
        named = {name: getattr(self, name) for name in _SETTINGS}
        self._access = Access(Settings(model=self.model_name, **named), client)

    @classmethod
    def class_name(cls) -> str:
        return "PoolEmbedding"

    def close(self) -> None:
        """Ends the sessions that this object has made. A client that was handed in stays open."""
        self._access.close()

    def __getstate__(self) -> dict[str, Any]:
        """LlamaIndex makes a copy from the fields alone: those of a client that was handed in are put among them."""
        state = super().__getstate__()
        settings = self._access.reachable()
        place = {"endpoint": settings.endpoint, "expect_fingerprint": settings.expect_fingerprint}
        return {**state, "__dict__": {**state["__dict__"], **place}}

    @field_serializer("endpoint", "expect_fingerprint")
    def _lasting(self, _: str | None, info: FieldSerializationInfo) -> str | None:
        found: str | None = self._access.lasting()[info.field_name]
        return found

    def _get_query_embedding(self, query: str) -> list[float]:
        found: list[float] = self._access.query(query).tolist()
        return found

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = self._access.documents(texts).tolist()
        return found

    async def _aget_query_embedding(self, query: str) -> list[float]:
        found: list[float] = (await self._access.aquery(query)).tolist()
        return found

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        found: list[list[float]] = (await self._access.adocuments(texts)).tolist()
        return found
