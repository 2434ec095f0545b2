"""AkiDB's REST, text by text: its clients compare them."""

from __future__ import annotations

import numpy as np
import pytest

from embedpool import errors
from embedpool.gateway.options import Options
from tests.gateway import FakePool, post, request
from tests.support import same

PATH = "/api/v1/embed"
STRICT = Options(compat=frozenset({"akidb-strict"}))


def test_an_answer_has_akidbs_members_in_its_order() -> None:
    answer = post(PATH, {"texts": ["a text", "another"], "model": "mine"})
    body = answer.json()
    assert list(body) == ["embeddings", "model", "dimension", "usage"]
    assert list(body["usage"]) == ["total_tokens", "duration_ms"]
    assert same(np.array(body["embeddings"], np.float32), ["a text", "another"])
    assert body["model"] == "mine"
    assert body["dimension"] == 384
    assert isinstance(body["usage"]["duration_ms"], int)


@pytest.mark.parametrize(
    ("texts", "total"), [(["abc"], 1), (["abcdefgh"], 2), (["abcdefgh", "x"], 2), (["é" * 4], 2), (["", ""], 2)]
)
def test_tokens_are_a_quarter_of_the_bytes_but_at_least_one_per_text(texts: list[str], total: int) -> None:
    assert post(PATH, {"texts": texts}).json()["usage"]["total_tokens"] == total


def test_without_a_model_the_pools_own_is_named() -> None:
    assert post(PATH, {"texts": ["a"]}).json()["model"] == "echo:384"


def test_pooling_and_normalize_are_taken_and_ignored() -> None:
    pool = FakePool()
    assert post(PATH, {"texts": ["a"], "pooling": "cls", "normalize": False}, pool).status_code == 200
    assert pool.asked["normalize"] is True


def test_inputs_are_taken_too_and_counted() -> None:
    body = post(PATH, {"inputs": ["a", "b"]}).json()
    assert body["count"] == 2
    assert "count" not in post(PATH, {"texts": ["a"], "inputs": ["b"]}).json()


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"texts": []}, 400, "texts cannot be empty"),
        ({"texts": ["a"] * 33}, 400, "Maximum 32 texts per request"),
        ({}, 422, "Failed to deserialize the JSON body into the target type: missing field `texts`"),
        (
            {"texts": "a"},
            422,
            "Failed to deserialize the JSON body into the target type: texts: expected `array`, got `str`",
        ),
        ([], 422, "Failed to deserialize the JSON body into the target type: expected `object`, got `array`"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_plain_text(body: object, status: int, text: str) -> None:
    answer = post(PATH, body)
    assert (answer.status_code, answer.text) == (status, text)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("body", [b"", b"{", b'{"texts":["\xff"]}', b'{"texts":[NaN]}', b'{"texts":["\\ud800"]}'])
def test_what_is_no_json_is_400(body: bytes) -> None:
    answer = request("POST", PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.text.startswith("Failed to parse the request body as JSON: ")


def test_another_content_type_is_415() -> None:
    answer = request("POST", PATH, content=b'{"texts":["a"]}', headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.text) == (415, "Expected request with `Content-Type: application/json`")
    assert request("POST", PATH, content=b'{"texts":["a"]}').status_code == 415


def test_a_body_over_akidbs_limit_is_413_and_one_at_it_is_not() -> None:
    room = 2_097_152 - len(b'{"texts":[""]}')
    headers = {"content-type": "application/json"}
    assert request("POST", PATH, content=b'{"texts":["' + b"a" * room + b'"]}', headers=headers).status_code == 200
    answer = request("POST", PATH, content=b'{"texts":["' + b"a" * (room + 1) + b'"]}', headers=headers)
    assert (answer.status_code, answer.text) == (413, "Failed to buffer the request body: length limit exceeded")


def test_a_strict_gateway_takes_only_what_akidb_takes() -> None:
    answer = post(PATH, {"inputs": ["a"]}, options=STRICT)
    assert answer.status_code == 422
    assert answer.text.endswith("missing field `texts`")


def test_a_failure_of_the_pool_has_its_own_status_or_akidbs_if_strict() -> None:
    pool = FakePool(errors.Overloaded("too much", retry_after_ms=1200))
    answer = post(PATH, {"texts": ["a"]}, pool)
    assert (answer.status_code, answer.text) == (429, "Embedding failed: too much")
    assert answer.headers["retry-after"] == "2"
    strict = post(PATH, {"texts": ["a"]}, pool, STRICT)
    assert (strict.status_code, strict.text) == (500, "Embedding failed: too much")


def test_health_and_readiness_are_told_by_status_and_by_body() -> None:
    answer = request("GET", "/health")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "healthy", "message": "Service is alive and operational"},
    )
    assert request("GET", "/ready").json()["status"] == "ready"


@pytest.mark.parametrize(
    "pool",
    [FakePool(errors.NotRunning("nobody")), FakePool(status={"state": "starting"}), FakePool(status={"state": "failed"})],
)
def test_a_pool_that_does_not_serve_is_503(pool: FakePool) -> None:
    health, ready = request("GET", "/health", pool), request("GET", "/ready", pool)
    assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
    assert health.json()["error_type"] == "Unhealthy"
    assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
