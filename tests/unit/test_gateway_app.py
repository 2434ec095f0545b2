"""What all dialects share: keys, limits, wishes, raw vectors, clients that leave, and the documentation."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import pytest

from embedpool import errors
from embedpool.client.aio import Answer
from embedpool.gateway.options import Options
from embedpool.gateway.reading import Asked, wishes
from tests.gateway import FakePool, app_of, post, request
from tests.support import expected

ASKED = [("/embed", {"inputs": "a"}), ("/v1/embeddings", {"input": "a"}), ("/api/v1/embed", {"texts": ["a"]})]
KEYED = Options(keys=("first", "second"))


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_with_keys_only_who_shows_one_is_answered(path: str, body: object) -> None:
    pool = FakePool()
    for shown in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first"}, {"authorization": "first"}):
        answer = post(path, body, pool, KEYED, **shown)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert pool.calls == 0
    for key in KEYED.keys:
        assert post(path, body, pool, KEYED, authorization=f"Bearer {key}").status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
def test_probes_and_documentation_need_no_key(path: str) -> None:
    assert request("GET", path, options=KEYED).status_code == 200


@pytest.mark.parametrize("path", ["/info", "/metrics", "/v1/models"])
def test_what_tells_about_the_pool_needs_one(path: str) -> None:
    assert request("GET", path, options=KEYED).status_code == 401


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_body_over_the_gateways_limit_is_413_whether_its_length_is_stated_or_not(path: str, body: object) -> None:
    options = Options(max_body_bytes=10)
    stated = post(path, body, options=options)

    async def parts() -> Any:
        yield json.dumps(body).encode()

    async def unstated() -> httpx.Response:
        transport = httpx.ASGITransport(app_of(FakePool(), options))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.post(path, content=parts(), headers={"content-type": "application/json"})

    for answer in (stated, asyncio.run(unstated())):
        assert answer.status_code == 413
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_body_that_does_not_come_is_408(path: str, body: object) -> None:
    assert body
    sent = asyncio.run(_raw(app_of(FakePool(), Options(receive_timeout_s=0.001)), path, []))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_more_requests_than_places_are_refused_at_once_and_places_come_back(path: str, body: object) -> None:
    pool = _Waiting()
    app = app_of(pool, Options(max_concurrent=1))

    async def go() -> tuple[int, int, int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            first = asyncio.create_task(client.post(path, json=body))
            await pool.begun.wait()
            second = await client.post(path, json=body)
            pool.go_on.set()
            return (await first).status_code, second.status_code, (await client.post(path, json=body)).status_code

    assert asyncio.run(go()) == (200, 429, 200)


def test_a_pool_of_another_version_is_not_the_clients_mistake() -> None:
    for path, body in ASKED:
        assert post(path, body, FakePool(errors.VersionMismatch("version 2"))).status_code == 503


def test_what_no_dialect_foresaw_is_no_traceback() -> None:
    answer = post("/v1/embeddings", {"input": "a"}, FakePool(RuntimeError("a secret path")))
    assert answer.status_code == 500
    assert "secret" not in answer.text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/embed", 405), ("PUT", "/", 405)])
def test_a_route_that_is_none_is_said_in_the_dialect_of_its_path(method: str, path: str, status: int) -> None:
    answer = request(method, path)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "error_type"}
    assert request("GET", "/v1/nowhere").json()["error"]["type"] == "invalid_request_error"
    assert request("GET", "/api/v1/nowhere").text == "Not Found"


# ── wishes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_deadline_priority_and_prompt_come_by_header(path: str, body: object) -> None:
    pool = FakePool()
    headers = {"x_embedpool_timeout_ms": "1500", "x_embedpool_priority": "bulk", "x_embedpool_prompt_name": "query"}
    assert post(path, body, pool, **headers).status_code == 200
    assert 0.5 < pool.asked["timeout_s"] <= 1.5
    assert (pool.asked["priority"], pool.asked["prompt_name"]) == ("bulk", "query")


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_field_is_nearer_than_a_header(path: str, body: dict[str, object]) -> None:
    pool = FakePool()
    fields = {"timeout_ms": 2500, "priority": "interactive", "prompt_name": "document"}
    headers = {"x_embedpool_timeout_ms": "1500", "x_embedpool_priority": "bulk", "x_embedpool_prompt_name": "query"}
    assert post(path, {**body, **fields}, pool, **headers).status_code == 200
    assert 1.5 < pool.asked["timeout_s"] <= 2.5
    assert (pool.asked["priority"], pool.asked["prompt_name"]) == ("interactive", "document")


@pytest.mark.parametrize("stated", ["0", "-1", "nan", "inf", "soon", "", "300001", "1e400"])
def test_a_deadline_out_of_bounds_is_refused(stated: str) -> None:
    with pytest.raises(errors.BadRequest, match="timeout_ms"):
        wishes({"x-embedpool-timeout-ms": stated}, Asked(), Options(), 0.0)


def test_a_deadline_is_counted_from_when_the_request_was_read() -> None:
    assert wishes({}, Asked(), Options(timeout_s=5.0), 100.0).deadline_at == 105.0
    assert wishes({"x-embedpool-timeout-ms": "250"}, Asked(), Options(), 100.0).deadline_at == 100.25


def test_a_priority_that_is_none_is_refused() -> None:
    with pytest.raises(errors.BadRequest, match="interactive"):
        wishes({"x-embedpool-priority": "now"}, Asked(), Options(), 0.0)


# ── vectors as bytes ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_vectors_come_as_plain_bytes_where_they_are_wanted_so(path: str, body: object) -> None:
    raw = post(path, body, accept="application/octet-stream")
    assert raw.headers["content-type"] == "application/octet-stream"
    assert (raw.headers["x-embedpool-shape"], raw.headers["x-embedpool-dtype"]) == ("1,384", "float32")
    assert np.array_equal(np.frombuffer(raw.content, "<f4").reshape(1, 384), expected(["a"]))
    npy = post(path, body, accept="application/x-npy")
    assert npy.headers["content-type"] == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(npy.content)), expected(["a"]))


def test_an_error_is_in_the_dialects_form_whatever_is_accepted() -> None:
    answer = post("/embed", {"inputs": []}, accept="application/octet-stream")
    assert (answer.status_code, answer.json()["error_type"]) == (400, "Empty")


# ── clients that leave ───────────────────────────────────────────────────────────────────────────────────────────────


class _Waiting(FakePool):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.cancelled = False

    async def answer(self, texts: Sequence[str], **keywords: Any) -> Answer:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return await super().answer(texts, **keywords)


async def _raw(app: Any, path: str, events: list[dict[str, Any]], gone: asyncio.Event | None = None) -> list[dict[str, Any]]:
    """What the app sends to a client that says `events` and then nothing, or, after `gone`, hangs up."""
    sent: list[dict[str, Any]] = []
    waiting = list(events)

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop(0)
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_client_that_hangs_up_ends_its_work(path: str, body: object) -> None:
    pool = _Waiting()
    whole = {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def go() -> list[dict[str, Any]]:
        # The client leaves once the pool has begun.
        return await _raw(app_of(pool), path, [whole], pool.begun)

    assert asyncio.run(go())[0]["status"] == 499
    assert pool.cancelled


def test_a_client_that_leaves_in_the_middle_of_its_body_asks_nothing() -> None:
    pool, gone = FakePool(), asyncio.Event()
    gone.set()
    part = {"type": "http.request", "body": b'{"inputs":', "more_body": True}
    assert asyncio.run(_raw(app_of(pool), "/embed", [part], gone))[0]["status"] == 499
    assert pool.calls == 0


# ── documentation ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_route_is_documented_with_the_fields_that_it_takes() -> None:
    found = request("GET", "/openapi.json", options=KEYED).json()
    assert found["openapi"].startswith("3.1")
    for path in ("/api/v1/embed", "/health", "/ready", "/embed", "/similarity", "/info", "/metrics", "/v1/embeddings"):
        assert path in found["paths"]
    schema = found["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = found["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    assert {"input", "model", "encoding_format", "dimensions", "user", "prompt_name", "timeout_ms"} <= set(fields)
    assert found["paths"]["/embed"]["post"]["security"] == [{"key": []}]
    assert "security" not in found["paths"]["/health"]["get"]


def test_the_page_loads_nothing_from_anywhere() -> None:
    answer = request("GET", "/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not any(sign in answer.text for sign in ("http://", "https://", "//cdn", "<script", "<img", "<link"))
    assert "/v1/embeddings" in answer.text
