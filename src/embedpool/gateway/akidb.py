"""AkiDB's REST: `POST /api/v1/embed`, `GET /health`, `GET /ready`. Errors are plain text, in the words that its framework
(axum) and AkiDB itself use.

Its own limits are kept (32 texts, 2 MiB), so that a client written for AkiDB meets no new case. Beside `texts` it takes the
`inputs` of AkiDB's guides, and then adds their `count`; with compat "akidb-strict" it does not, and failures are 500.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from embedpool.errors import BadRequest, EmbedpoolError
from embedpool.gateway.dialect import Endpoint
from embedpool.gateway.reading import Asked, Kind, Unreadable, read
from embedpool.gateway.rendering import as_json, as_text, facts, pause, plain_bytes
from embedpool.gateway.service import Embedded, Service

MOST_TEXTS = 32
MOST_BYTES = 2_097_152
SAID: dict[Kind, str] = {
    "key": "Unauthorized",
    "path": "Not Found",
    "method": "Method Not Allowed",
    "media": "Expected request with `Content-Type: application/json`",
    "large": "Failed to buffer the request body: length limit exceeded",
    "slow": "Failed to buffer the request body: it did not come in time",
    "syntax": "Failed to parse the request body as JSON: ",
    "shape": "Failed to deserialize the JSON body into the target type: ",
}


class EmbedRequest(Asked, frozen=True, kw_only=True):
    """`pooling` and `normalize` are taken and without effect, as in AkiDB; `model` comes back in the answer."""

    texts: list[str] | UnsetType = UNSET
    inputs: list[str] | UnsetType = UNSET
    model: str | None = None
    pooling: str | None = None
    normalize: bool | None = None


class AkiDB:
    """The dialect over a service."""

    name = "AkiDB"
    prefix = "/api/v1/"

    def __init__(self, service: Service) -> None:
        self.service = service
        self.strict = "akidb-strict" in service.options.compat

    def endpoints(self) -> Sequence[Endpoint]:
        answer = {"embeddings": [[0.1, 0.2]], "model": "m", "dimension": 2, "usage": {"total_tokens": 1, "duration_ms": 5}}
        up = {"status": "healthy", "message": "Service is alive and operational"}
        return (
            Endpoint(
                method="POST",
                path="/api/v1/embed",
                handler=self.embed,
                summary="Vectors of at most 32 texts, as AkiDB's REST gives them.",
                asked=EmbedRequest,
                answer=answer,
                counted=True,
            ),
            Endpoint(
                method="GET",
                path="/health",
                handler=self.health,
                summary="200 while the pool serves, 503 otherwise. For AkiDB's and TEI's clients.",
                answer=up,
                open=True,
            ),
            Endpoint(
                method="GET",
                path="/ready",
                handler=self.ready,
                summary="200 when requests can be answered, 503 otherwise.",
                answer={"status": "ready", "message": "Service is ready to accept requests"},
                open=True,
            ),
        )

    async def embed(self, request: Request) -> Response:
        most = min(MOST_BYTES, self.service.options.max_body_bytes)
        asked = await read(request, EmbedRequest, most, self.service.options.receive_timeout_s)
        texts, wished = self.texts(asked), self.service.wishes(request, asked)
        found = await self.service.unless_hung_up(request, self.service.embed(wished, texts))
        plain = plain_bytes(request.headers.get("accept", ""), found)
        return plain or as_json(answer(asked, texts, found), headers=facts(found))

    def texts(self, asked: EmbedRequest) -> list[str]:
        """The texts, by either name. Raises Unreadable for a missing field, BadRequest for too few or too many."""
        texts = asked.texts
        if texts is UNSET and not self.strict:
            texts = asked.inputs
        if texts is UNSET:
            raise Unreadable("shape", "missing field `texts`")
        if not texts:
            raise BadRequest("texts cannot be empty")
        if len(texts) > MOST_TEXTS:
            raise BadRequest(f"Maximum {MOST_TEXTS} texts per request")
        return texts

    async def health(self, _: Request) -> Response:
        state = (await self.service.probe()).get("state", "unreachable")
        if state == "serving":
            return as_json({"status": "healthy", "message": "Service is alive and operational"})
        # The last two members are what TEI's clients find in its own 503.
        wrong = {"status": "unhealthy", "message": f"The pool is {state}", "error": "unhealthy", "error_type": "Unhealthy"}
        return as_json(wrong, 503)

    async def ready(self, _: Request) -> Response:
        state = (await self.service.probe()).get("state", "unreachable")
        if state == "serving":
            return as_json({"status": "ready", "message": "Service is ready to accept requests"})
        return as_json({"status": "not_ready", "message": f"The pool is {state}"}, 503)

    def unreadable(self, fault: Unreadable) -> Response:
        detail = fault.detail if fault.kind in ("syntax", "shape") else ""
        return as_text(SAID[fault.kind] + detail, fault.status)

    def refused(self, error: EmbedpoolError) -> Response:
        if isinstance(error, BadRequest):
            return as_text(error.message, error.http_status)
        return as_text(f"Embedding failed: {error.message}", 500 if self.strict else error.http_status, pause(error))


def estimated_tokens(texts: Sequence[str]) -> int:
    """AkiDB's tokens: an estimate from bytes."""
    return max(sum(len(text.encode()) // 4 for text in texts), len(texts))


def answer(asked: EmbedRequest, texts: Sequence[str], found: Embedded) -> dict[str, Any]:
    """The members in AkiDB's order. What the model read is in the headers."""
    body = {
        "embeddings": found.vectors,
        "model": asked.model or found.model,
        "dimension": found.vectors.shape[1],
        "usage": {"total_tokens": estimated_tokens(texts), "duration_ms": round(found.seconds * 1e3)},
    }
    return body if asked.texts is not UNSET else {**body, "count": len(texts)}
