"""Answers as bytes. Vectors become JSON straight from their array, or are sent as they are:

Accept: application/octet-stream    rows of little-endian float32, `x-embedpool-shape: rows,dim`
Accept: application/x-npy           the same with numpy's own head
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping

import numpy as np
import orjson
from starlette.responses import Response

from embedpool.client.arena import Vectors
from embedpool.errors import EmbedpoolError
from embedpool.gateway.service import Embedded

RAW, NPY = "application/octet-stream", "application/x-npy"


def dumps(content: object) -> bytes:
    """JSON of what may hold numpy arrays: float32 with the fewest digits that give the same float32 again."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def as_json(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dumps(content), status, headers, "application/json")


def as_text(content: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(content.encode("utf-8", "replace"), status, headers, "text/plain; charset=utf-8")


def plain_bytes(accept: str, found: Embedded) -> Response | None:
    """The vectors alone, where the client wants them so; None where it wants its dialect's JSON.

    A copy: a view would hold its room of the session's segment for as long as a slow client reads.
    """
    vectors, headers = np.ascontiguousarray(found.vectors, "<f4"), facts(found)
    if NPY in accept:
        file = io.BytesIO()
        np.save(file, vectors)
        return Response(file.getvalue(), 200, headers, NPY)
    if RAW in accept:
        headers |= {"x-embedpool-shape": ",".join(map(str, vectors.shape)), "x-embedpool-dtype": "float32"}
        return Response(vectors.tobytes(), 200, headers, RAW)
    return None


def facts(found: Embedded) -> dict[str, str]:
    """Headers with what is known of a request, under TEI's names; times in whole milliseconds."""
    answer = found.answer
    return {
        "x-compute-characters": str(found.characters),
        "x-compute-tokens": str(answer.tokens),
        "x-total-time": str(round(found.seconds * 1e3)),
        "x-queue-time": str(round(answer.queue_ms)),
        "x-tokenization-time": str(round(answer.tokenize_ms)),
        "x-inference-time": str(round(answer.run_ms)),
        "x-embedpool-fingerprint": answer.fingerprint.encode("ascii", "backslashreplace").decode(),
    }


def base64_rows(vectors: Vectors) -> list[orjson.Fragment]:
    """Each row's little-endian bytes, as a JSON string that is not looked through again."""
    return [orjson.Fragment(b'"' + b64encode(row) + b'"') for row in np.ascontiguousarray(vectors, "<f4")]


def pause(error: EmbedpoolError) -> dict[str, str]:
    """When to try again, where the pool has said so: in whole seconds (RFC 9110, 10.2.3), and in the milliseconds that
    OpenAI's own clients look at first."""
    if error.retry_after_ms is None:
        return {}
    return {"retry-after": str(-(-error.retry_after_ms // 1000)), "retry-after-ms": str(error.retry_after_ms)}
