"""The OpenAPI document at `/openapi.json`, made from the routes and their request types, and a page of it at `/docs`.

The page is plain HTML made here: nothing is loaded from another host, and no script runs.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from html import escape
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedpool import __version__
from embedpool.gateway.dialect import Dialect, Endpoint
from embedpool.gateway.rendering import NPY, RAW, as_json

HEADERS = {
    "x-embedpool-timeout-ms": "How long the answer is of use, in milliseconds.",
    "x-embedpool-priority": "interactive, bulk or auto: what waits for whom.",
    "x-embedpool-prompt-name": "One of the model's prompts, to be put before each text.",
}
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#8881;padding:.6rem;overflow:auto}code{font-size:.9em}td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
)


def routes(dialects: Sequence[Dialect], keyed: bool) -> list[Route]:
    found = document(dialects, keyed)
    text = page(found)
    secure = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "x-content-type-options": "nosniff"}
    return [
        Route("/openapi.json", _always(lambda: as_json(found))),
        Route("/docs", _always(lambda: Response(text, media_type="text/html", headers=secure))),
    ]


def _always(make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(_: Request) -> Response:
        return make()

    return handle


def document(dialects: Sequence[Dialect], keyed: bool) -> dict[str, Any]:
    """OpenAPI 3.1."""
    asked = [endpoint.asked for dialect in dialects for endpoint in dialect.endpoints() if endpoint.asked]
    schemas, components = msgspec.json.schema_components(asked, ref_template="#/components/schemas/{name}")
    of = dict(zip(asked, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for dialect in dialects:
        for endpoint in dialect.endpoints():
            path = endpoint.path.replace(":path}", "}")
            paths.setdefault(path, {})[endpoint.method.lower()] = _operation(dialect, endpoint, of, keyed)
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "embedpool gateway", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }
    if keyed:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _operation(dialect: Dialect, endpoint: Endpoint, schemas: dict[Any, Any], keyed: bool) -> dict[str, Any]:
    content: dict[str, Any] = {endpoint.media: {"example": endpoint.answer} if endpoint.answer is not None else {}}
    if endpoint.counted:
        content |= {RAW: {}, NPY: {}}
    found: dict[str, Any] = {
        "tags": [dialect.name],
        "summary": endpoint.summary,
        "responses": {"200": {"description": "done", "content": content}, "default": {"description": "an error"}},
    }
    parameters = [_parameter("path", name, "") for name in _placeholders(endpoint.path)]
    if endpoint.counted:
        parameters += [_parameter("header", name, text) for name, text in HEADERS.items()]
    if parameters:
        found["parameters"] = parameters
    if endpoint.asked is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schemas[endpoint.asked]}}}
    if keyed and not endpoint.open:
        found["security"] = [{"key": []}]
    return found


def _placeholders(path: str) -> list[str]:
    return [part.partition("}")[0].partition(":")[0] for part in path.split("{")[1:]]


def _parameter(place: str, name: str, text: str) -> dict[str, Any]:
    return {"in": place, "name": name, "required": place == "path", "description": text, "schema": {"type": "string"}}


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def page(found: dict[str, Any]) -> str:
    """The document for people."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>embedpool gateway</title><style>{STYLE}</style>",
        "<h1>embedpool gateway</h1><p>As a document for programs: <a href=openapi.json>openapi.json</a>.</p>",
    ]
    schemas = found["components"]["schemas"]
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            parts.append(_section(path, method, operation, schemas))
    return "".join(parts)


def _section(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{operation['tags'][0]}. {escape(operation['summary'])}"]
    if "requestBody" in operation:
        name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        parts.append(_fields(schemas[name]))
    headers = [each for each in operation.get("parameters", ()) if each["in"] == "header"]
    if headers:
        cells = (f"<tr><td><code>{each['name']}</code><td>{escape(each['description'])}" for each in headers)
        parts.append(f"<table>{''.join(cells)}</table>")
    example = next(iter(operation["responses"]["200"]["content"].values())).get("example")
    if example is not None:
        parts.append(f"<pre>{escape(json.dumps(example))}</pre>")
    return "".join(parts)


def _fields(schema: dict[str, Any]) -> str:
    rows = []
    for name, field in schema.get("properties", {}).items():
        default = field.get("default")
        said = "" if default is None else f"default {json.dumps(default)}"
        rows.append(f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field))}<td>{escape(said)}")
    return f"<table>{''.join(rows)}</table>"


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if "enum" in field:
        return " or ".join(json.dumps(each) for each in field["enum"])
    if field.get("type") == "array":
        return f"array of ({_type(field.get('items', {}))})"
    return str(field.get("type") or field.get("$ref", "any").rpartition("/")[2])
