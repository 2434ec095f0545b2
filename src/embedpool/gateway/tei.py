"""Text Embeddings Inference's routes. Errors are {"error", "error_type"}.

`/embed` (also `/`, where Hugging Face's client posts), `/similarity`, `/tokenize`, `/info`, `/metrics`; `/health` is in
akidb.py and answers both. `/embed_all` says why it cannot be done: a pool gives one vector per text.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from embedpool import __version__
from embedpool.errors import EmbedpoolError, Overloaded, TextTooLong
from embedpool.gateway.dialect import Endpoint
from embedpool.gateway.reading import Asked, Kind, Unreadable, Wishes, read
from embedpool.gateway.rendering import as_json, facts, pause, plain_bytes
from embedpool.gateway.service import Embedded, Service
from embedpool.gateway.tokens import Tokens
from embedpool.memory import memory_of
from embedpool.metrics import pids
from embedpool.protocol import Truncate

MOST_BYTES = 2_000_000  # TEI's default --payload-limit
ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]
SAID: dict[Kind, str] = {
    "key": "Unauthorized",
    "path": "Not found",
    "method": "Method not allowed",
    "media": "Expected request with `Content-Type: application/json`",
    "large": "Failed to buffer the request body: length limit exceeded",
    "slow": "Failed to buffer the request body: it did not come in time",
    "syntax": "Failed to parse the request body as JSON: ",
    "shape": "Failed to deserialize the JSON body into the target type: ",
}
# What TEI has no status for keeps its own: 499, 504.
TYPES: dict[int, tuple[int, ErrorType]] = {
    400: (422, "Validation"),
    404: (422, "Validation"),
    409: (424, "Backend"),
    413: (422, "Validation"),
    422: (422, "Validation"),
    429: (429, "Overloaded"),
    500: (424, "Backend"),
    503: (503, "Unhealthy"),
    507: (424, "Backend"),
}
DTYPES = {"fp32": "float32", "fp16": "float16"}
IDS = "`inputs` must be text: this gateway does not know the model's tokenizer, by which token ids are read"
NO_SUCH_ID = "`inputs` has a token id that is not in the model's vocabulary"
NO_TOKENS = "`/embed_all` is not available: the pool gives one vector per text, not one per token"
NO_TOKENIZER = "`/tokenize` is not available: this gateway does not know the model's tokenizer"
COUNTS = re.compile(r"has (\d+) tokens, the model reads (\d+)")  # worker.job's words for a text that is too long
Direction = Literal["Left", "Right", "left", "right"]


class Rejected(Exception):
    """A request that TEI itself would refuse, in its words."""

    def __init__(self, message: str, status: int = 422, kind: ErrorType = "Validation") -> None:
        super().__init__(message)
        self.message, self.status, self.kind = message, status, kind


class EmbedRequest(Asked, frozen=True, kw_only=True):
    inputs: str | list[str | int | list[int]] | UnsetType = UNSET
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    normalize: bool = True
    dimensions: int | None = None


class Compared(Struct, frozen=True):
    source_sentence: str
    sentences: list[str]


class Parameters(Struct, frozen=True):
    truncate: bool | None = None
    truncation_direction: Direction = "Right"
    prompt_name: str | None = None


class TokenizeRequest(Asked, frozen=True, kw_only=True):
    inputs: str | list[str]
    add_special_tokens: bool = True


class SimilarityRequest(Asked, frozen=True, kw_only=True):
    inputs: Compared
    parameters: Parameters | None = None


class TEI:
    """The dialect over a service."""

    name = "TEI"
    prefix = "/"

    def __init__(self, service: Service) -> None:
        self.service = service
        self.te = service.metrics.te
        self.old = "tei-1.8" in service.options.compat
        self.tokens = None if service.options.tokenizer is None else Tokens(service.options.tokenizer)

    def endpoints(self) -> Sequence[Endpoint]:
        embed = Endpoint(
            method="POST",
            path="/embed",
            handler=self.embed,
            summary="Vectors of a text or of several.",
            asked=EmbedRequest,
            answer=[[0.1, 0.2]],
            counted=True,
        )
        return (
            embed,
            replace(embed, path="/", summary="The same as /embed."),
            Endpoint(
                method="POST",
                path="/similarity",
                handler=self.similarity,
                summary="Cosines of one text to others.",
                asked=SimilarityRequest,
                answer=[0.75, 0.03],
                counted=True,
            ),
            Endpoint(method="POST", path="/embed_all", handler=self.embed_all, summary="424: there are no token vectors."),
            Endpoint(
                method="POST",
                path="/tokenize",
                handler=self.tokenize,
                summary="Tokens of a text or of several.",
                asked=TokenizeRequest,
                answer=[[{"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}]],
                counted=True,
            ),
            Endpoint(method="GET", path="/info", handler=self.info, summary="The model and the limits."),
            Endpoint(
                method="GET", path="/metrics", handler=self.metrics, summary="Numbers in Prometheus' form.", media="text/plain"
            ),
        )

    # ── routes ──

    async def embed(self, request: Request) -> Response:
        asked = await self._read(request, EmbedRequest)
        work = self.service.unless_hung_up(request, self._embed(request, asked))
        return await self.te.counted(asked.inputs, work)

    async def _embed(self, request: Request, asked: EmbedRequest) -> Response:
        try:
            texts, wished = self._texts(asked), self.service.wishes(request, asked)
            dim = self._dimensions(asked, (await self.service.card(wished)).dim)
        except Rejected as error:
            return self._error(error)
        truncate = self._truncate(asked.truncate, asked.truncation_direction)
        found = await self._vectors(wished, texts, dim=dim, normalize=asked.normalize, truncate=truncate)
        return plain_bytes(request.headers.get("accept", ""), found) or as_json(found.vectors, headers=facts(found))

    async def similarity(self, request: Request) -> Response:
        asked = await self._read(request, SimilarityRequest)
        work = self.service.unless_hung_up(request, self._similarity(request, asked))
        return await self.te.counted(asked.inputs.sentences, work)

    async def _similarity(self, request: Request, asked: SimilarityRequest) -> Response:
        more = asked.parameters or Parameters()
        texts = [asked.inputs.source_sentence, *asked.inputs.sentences]
        if len(texts) == 1:
            return self._error(Rejected("`inputs.sentences` cannot be empty", 400, "Empty"))
        if len(texts) > self.service.options.max_client_batch:
            return self._error(self._too_many(len(texts)))
        if more.prompt_name is not None:
            asked = msgspec.structs.replace(asked, prompt_name=more.prompt_name)
        truncate = self._truncate(more.truncate, more.truncation_direction)
        found = await self._vectors(self.service.wishes(request, asked), texts, truncate=truncate)
        return as_json(found.vectors[1:] @ found.vectors[0], headers=facts(found))

    async def _vectors(
        self, wished: Wishes, texts: Sequence[str], *, dim: int = 0, normalize: bool = True, truncate: Truncate
    ) -> Embedded:
        self.te.texts += len(texts)
        found = await self.service.embed(wished, texts, dim=dim, normalize=normalize, truncate=truncate)
        self.te.embedded(len(texts), found.answer, found.seconds)
        return found

    async def embed_all(self, _: Request) -> Response:
        return self._error(Rejected(NO_TOKENS, 424, "Backend"))

    async def tokenize(self, request: Request) -> Response:
        asked = await self._read(request, TokenizeRequest)
        if self.tokens is None:
            return self._error(Rejected(NO_TOKENIZER, 424, "Backend"))
        texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        if not texts:
            return self._error(Rejected("`inputs` cannot be empty", 400, "Empty"))
        if len(texts) > self.service.options.max_client_batch:
            return self._error(self._too_many(len(texts)))
        # In a thread: a long text takes milliseconds, and the first one waits for the tokenizer to be read.
        find = partial(self.tokens.of, texts, special=asked.add_special_tokens, prompt_name=asked.prompt_name)
        found = await asyncio.to_thread(find)
        if found is None:
            return self._error(Rejected(f"no prompt {asked.prompt_name!r}"))
        return as_json([[structs.asdict(token) for token in tokens] for tokens in found])

    async def info(self, _: Request) -> Response:
        """`model_sha` is null: the pool tells its model by the fingerprint. `max_batch_tokens` is what one request can hold at
        most, since a pool has no such setting; `tokenization_workers` are the pool's, which tokenize what they run."""
        options, card, status = self.service.options, await self.service.card(), await self.service.status()
        return as_json(
            {
                "model_id": card.name,
                "model_sha": None,
                "model_dtype": DTYPES.get(card.precision, card.precision),
                "model_type": {"embedding": {"pooling": card.pooling or "unknown"}},
                "max_concurrent_requests": options.max_concurrent,
                "max_input_length": card.max_tokens,
                "max_batch_tokens": options.max_client_batch * card.max_tokens,
                "max_batch_requests": None,
                "max_client_batch_size": options.max_client_batch,
                "auto_truncate": options.truncates,
                "tokenization_workers": len(status["workers"]),
                "version": __version__,
                "fingerprint": card.fingerprint,
                "dimension": card.dim,
                "prompts": card.prompts,
            }
        )

    async def metrics(self, _: Request) -> Response:
        status = await self.service.probe()
        memory = await asyncio.to_thread(memory_of, pids(status))  # milliseconds for a process with many mappings
        text = self.service.metrics.exposition(status, memory)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    # ── what TEI checks ──

    async def _read(self, request: Request, kind: type[Any]) -> Any:
        options = self.service.options
        return await read(request, kind, min(MOST_BYTES, options.max_body_bytes), options.receive_timeout_s)

    def _texts(self, asked: EmbedRequest) -> list[str]:
        if asked.inputs is UNSET:
            raise Unreadable("shape", "missing field `inputs`")
        given: list[str | int | list[int]] = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        if not given:
            raise Rejected("`inputs` cannot be empty", 400, "Empty")
        # One array of numbers is one text's tokens.
        parts = [given] if all(isinstance(each, int) for each in given) else given
        if len(parts) > self.service.options.max_client_batch:
            raise self._too_many(len(parts))
        return [part if isinstance(part, str) else self._text_of(part) for part in parts]

    def _text_of(self, ids: object) -> str:
        """As TEI reads token ids: as the text that they stand for."""
        if not isinstance(ids, list) or not all(isinstance(id, int) for id in ids):
            raise Unreadable("shape", "inputs: expected texts, or arrays of token ids")
        if self.tokens is None:
            raise Rejected(IDS)
        text = self.tokens.text_of(ids)
        if text is None:
            raise Rejected(NO_SUCH_ID, 422, "Tokenizer")
        return text

    def _too_many(self, n: int) -> Rejected:
        return Rejected(f"batch size {n} > maximum allowed batch size {self.service.options.max_client_batch}")

    def _dimensions(self, asked: EmbedRequest, most: int) -> int:
        if asked.dimensions is None:
            return 0
        if asked.dimensions == 0:
            raise Rejected("`dimensions` should be positive")
        if asked.dimensions < 0:  # a type error in TEI, whose field has no sign
            raise Unreadable("shape", "dimensions: expected a number from 1")
        if asked.dimensions > most:
            raise Rejected("`dimensions` should be smaller than the maximum embedding dimension.")
        return asked.dimensions

    def _truncate(self, truncate: bool | None, direction: Direction) -> Truncate:
        if not (self.service.options.truncates if truncate is None else truncate):
            return False
        return "left" if direction.lower() == "left" else "right"

    # ── errors ──

    def unreadable(self, fault: Unreadable) -> Response:
        detail = fault.detail if fault.kind in ("syntax", "shape") else ""
        return self._error(Rejected(SAID[fault.kind] + detail, fault.status))

    def refused(self, error: EmbedpoolError) -> Response:
        status, kind = TYPES.get(error.http_status, (error.http_status, "Backend"))
        message = error.message
        if isinstance(error, Overloaded):
            message = "Model is overloaded"
        elif isinstance(error, TextTooLong) and (counts := COUNTS.search(message)):
            # TEI says "less than" of the greatest length that it takes.
            message = f"Input validation error: `inputs` must have less than {counts[2]} tokens. Given: {counts[1]}"
        return self._error(Rejected(message, status, kind), pause(error))

    def _error(self, error: Rejected, headers: dict[str, str] | None = None) -> Response:
        status = 413 if self.old and (error.status, error.kind) == (422, "Validation") else error.status
        return as_json({"error": error.message, "error_type": error.kind}, status, headers)
