"""A pool as Chroma's `EmbeddingFunction`. Importing this module makes it known to Chroma by its name, "embedpool".

Chroma writes `get_config()` beside a collection and builds the function from it when the collection is opened again, in any
process: so it holds no endpoint of a private Pool. With `expect_fingerprint` it holds that too, and a pool of another model or
version is refused with WrongFingerprint instead of being mixed into the collection.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Unpack

from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from embedpool.client import Client
from embedpool.errors import BadRequest, WrongFingerprint
from embedpool.integrations.access import Access, Given, Settings


@register_embedding_function
class PoolEmbeddingFunction(EmbeddingFunction[Documents]):
    """`PoolEmbeddingFunction()` finds the pool; `PoolEmbeddingFunction(client=pool)` uses a Client or Pool that you close.

    Keywords: those of access.Settings. What is added gets the model's document prompt, what is searched for its query prompt,
    if it has them. Raises BadRequest and its children, Overloaded, TimedOut, NotRunning, as Client does. Threads may share one.
    """

    def __init__(self, *, client: Client | None = None, **given: Unpack[Given]) -> None:
        self._access = Access(Settings(**given), client)

    def __call__(self, input: Documents) -> Embeddings:
        """One float32[dim] per document, in order."""
        return list(self._access.documents(input))

    def embed_query(self, input: Documents) -> Embeddings:
        """One float32[dim] per query, in order."""
        return list(self._access.queries(input))

    @staticmethod
    def name() -> str:
        return "embedpool"

    def default_space(self) -> Space:
        return "cosine"  # models are trained for it; where vectors have unit length, l2 ranks the same

    def supported_spaces(self) -> list[Space]:
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """Settings by name, JSON values; asks no pool."""
        return self._access.lasting()

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> PoolEmbeddingFunction:
        PoolEmbeddingFunction.validate_config(config)
        return PoolEmbeddingFunction(**config)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Raises BadRequest for a name that is no setting."""
        unknown = set(config) - {field.name for field in fields(Settings)}
        if unknown:
            raise BadRequest(f"no such setting of an embedpool function: {', '.join(sorted(unknown))}")

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Raises BadRequest for a change of `model`, `dim`, `normalize` or the document prompt, WrongFingerprint for one of the
        fingerprint: they would mix vectors of two kinds in one collection."""
        self.validate_config(new_config)
        for name in ("model", "dim", "normalize", "document_prompt"):
            if name in new_config and new_config[name] != old_config.get(name):
                raise BadRequest(f"{name} cannot change while the collection has vectors: make a new collection")
        before, after = (config.get("expect_fingerprint") for config in (old_config, new_config))
        if before and after and before != after:
            raise WrongFingerprint(f"the collection has vectors of {before}, not {after}: make a new collection")

    def close(self) -> None:
        """Ends the sessions that this object has made. A client that was handed in stays open."""
        self._access.close()
