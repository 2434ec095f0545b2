"""OpenAI's embeddings: `POST /v1/embeddings`, `GET /v1/models`. Errors are {"error": {message, type, code, param}}.

What is taken more loosely than by OpenAI: `model` may be missing, and `truncate` and `prompt_name` may be given. A model that
the pool does not serve is refused, unless --model-alias names it: vectors of another model are worse than an error.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from embedpool.errors import BadDimension, BadRequest, EmbedpoolError, UnknownModel
from embedpool.gateway.dialect import Endpoint
from embedpool.gateway.reading import Asked, Kind, Unreadable, read
from embedpool.gateway.rendering import as_json, base64_rows, facts, pause, plain_bytes
from embedpool.gateway.service import Embedded, Service
from embedpool.protocol import ModelCard

MOST_INPUTS = 2048  # of one request, OpenAI's reference
NO_IDS = "token ids are not accepted, since they depend on the model's tokenizer: send the texts"
SAID: dict[Kind, str] = {
    "key": "Incorrect API key provided. Send one of the server's keys as `Authorization: Bearer KEY`.",
    "path": "Unknown request URL.",
    "method": "Not allowed: use the method of the documentation at /docs.",
    "media": "The body must be JSON: send `Content-Type: application/json`.",
    "large": "The request body is larger than ",
    "slow": "The request body did not come within ",
    "syntax": "We could not parse the JSON body of your request: ",
    "shape": "Invalid request: ",
}
# What the official clients' exceptions carry; the status is what decides their class.
TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable_error"}
CODES = {"unknown_model": "model_not_found", "overloaded": "rate_limit_exceeded", "too_long": "context_length_exceeded"}
PARAMS = {"unknown_model": "model", "bad_dimension": "dimensions", "bad_text": "input", "too_long": "input"}


class EmbeddingsRequest(Asked, frozen=True, kw_only=True):
    """`truncate` false refuses texts that are too long; `user` is without effect."""

    input: str | list[str | int | list[int]] | UnsetType = UNSET
    model: str = ""
    encoding_format: str | None = None
    dimensions: int | None = None
    user: str | None = None
    truncate: bool | None = None


class OpenAI:
    """The dialect over a service."""

    name = "OpenAI"
    prefix = "/v1/"

    def __init__(self, service: Service) -> None:
        self.service = service

    def endpoints(self) -> Sequence[Endpoint]:
        row = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        model = {"id": "m", "object": "model", "created": 0, "owned_by": "embedpool"}
        return (
            Endpoint(
                method="POST",
                path="/v1/embeddings",
                handler=self.embeddings,
                summary=f"Vectors of at most {MOST_INPUTS} texts, as OpenAI gives them.",
                asked=EmbeddingsRequest,
                answer={"object": "list", "data": [row], "model": "m", "usage": usage},
                counted=True,
            ),
            Endpoint(
                method="GET",
                path="/v1/models",
                handler=self.models,
                summary="The pool's model.",
                answer={"object": "list", "data": [model]},
            ),
            Endpoint(
                method="GET",
                path="/v1/models/{name:path}",
                handler=self.model,
                summary="The pool's model, by any of its names.",
                answer=model,
            ),
        )

    async def embeddings(self, request: Request) -> Response:
        service = self.service
        asked = await read(request, EmbeddingsRequest, service.options.max_body_bytes, service.options.receive_timeout_s)
        return await service.unless_hung_up(request, self._embeddings(request, asked))

    async def _embeddings(self, request: Request, asked: EmbeddingsRequest) -> Response:
        service = self.service
        texts, wished = texts_of(asked), service.wishes(request, asked)
        self._check(asked, await service.card(wished))
        truncate = service.options.truncates if asked.truncate is None else asked.truncate
        found = await service.embed(wished, texts, dim=asked.dimensions or 0, truncate=truncate)
        plain = plain_bytes(request.headers.get("accept", ""), found)
        return plain or as_json(answer(found, asked.encoding_format == "base64"), headers=facts(found))

    def _check(self, asked: EmbeddingsRequest, card: ModelCard) -> None:
        if not self.service.is_served(asked.model, card):
            raise UnknownModel(f"The model `{asked.model}` does not exist here: this pool serves `{card.name}`.")
        if asked.encoding_format not in (None, "float", "base64"):
            raise BadRequest("encoding_format is float or base64")
        if asked.dimensions is not None and not 1 <= asked.dimensions <= card.dim:
            raise BadDimension(f"dimensions must be from 1 to {card.dim}, the dimension of {card.name}")

    async def models(self, _: Request) -> Response:
        return as_json({"object": "list", "data": [await self._model()]})

    async def model(self, request: Request) -> Response:
        card, asked = await self.service.card(), request.path_params["name"]
        if not self.service.is_served(asked, card):
            raise UnknownModel(f"The model `{asked}` does not exist here: this pool serves `{card.name}`.")
        return as_json(await self._model())

    async def _model(self) -> dict[str, Any]:
        """`created` is when the pool began to serve it."""
        card, status = await self.service.card(), await self.service.status()
        created = int(time.time() - status["uptime_s"])
        return {"id": card.name, "object": "model", "created": created, "owned_by": "embedpool"}

    def unreadable(self, fault: Unreadable) -> Response:
        detail = fault.detail if fault.kind in ("syntax", "shape", "large", "slow") else ""
        code = "invalid_api_key" if fault.kind == "key" else None
        # OpenAI has one status for all that is wrong with a body that could be read.
        status = 400 if fault.kind == "shape" else fault.status
        return _error(SAID[fault.kind] + detail, status, code, None)

    def refused(self, error: EmbedpoolError) -> Response:
        code = CODES.get(error.code, error.code)
        return _error(error.message, error.http_status, code, PARAMS.get(error.code), pause(error))


def _error(message: str, status: int, code: str | None, param: str | None, headers: dict[str, str] | None = None) -> Response:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return as_json({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def texts_of(asked: EmbeddingsRequest) -> list[str]:
    """Raises BadRequest for no text, an empty one, too many, and for token ids."""
    if asked.input is UNSET:
        raise Unreadable("shape", "missing field `input`")
    given: list[str | int | list[int]] = [asked.input] if isinstance(asked.input, str) else asked.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise BadRequest(NO_IDS)
    if not texts or "" in texts:
        raise BadRequest("input must hold at least one text, and no empty one")
    if len(texts) > MOST_INPUTS:
        raise BadRequest(f"input holds {len(texts)} texts, at most {MOST_INPUTS} are taken in one request")
    return texts


def answer(found: Embedded, base64: bool) -> dict[str, Any]:
    """The members in OpenAI's order."""
    rows = base64_rows(found.vectors) if base64 else found.vectors
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": found.model,
        "usage": {"prompt_tokens": found.answer.tokens, "total_tokens": found.answer.tokens},
    }
