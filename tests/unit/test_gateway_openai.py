"""OpenAI's embeddings, field by field; the official package speaks to a real pool in tests/process/test_gateway.py."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from embedpool import errors
from embedpool.gateway.options import Options
from embedpool.protocol import ModelCard
from tests.gateway import FakePool, post, request
from tests.support import expected

PATH = "/v1/embeddings"


def test_an_answer_has_openais_members() -> None:
    body = post(PATH, {"input": ["one", "two"], "model": "echo:384", "user": "me"}).json()
    assert list(body) == ["object", "data", "model", "usage"]
    assert body["object"] == "list"
    assert [(row["object"], row["index"]) for row in body["data"]] == [("embedding", 0), ("embedding", 1)]
    assert np.array_equal(np.array([row["embedding"] for row in body["data"]], np.float32), expected(["one", "two"]))
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert body["model"] == "echo:384"


def test_base64_is_the_rows_own_bytes() -> None:
    body = post(PATH, {"input": "one", "encoding_format": "base64"}).json()
    found = np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")
    assert np.array_equal(found, expected(["one"])[0])


def test_dimensions_reach_the_pool() -> None:
    pool = FakePool()
    body = post(PATH, {"input": "one", "dimensions": 16, "prompt_name": "query"}, pool).json()
    assert len(body["data"][0]["embedding"]) == 16
    assert (pool.asked["dim"], pool.asked["prompt_name"]) == (16, "query")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": []}, 400, "bad_request", None),
        ({"input": ""}, 400, "bad_request", None),
        ({"input": ["a", ""]}, 400, "bad_request", None),
        ({"input": ["a"] * 2049}, 400, "bad_request", None),
        ({"input": [1, 2]}, 400, "bad_request", None),
        ({"input": [[1, 2]]}, 400, "bad_request", None),
        ({"input": "a", "encoding_format": "int8"}, 400, "bad_request", None),
        ({"input": "a", "dimensions": 0}, 400, "bad_dimension", "dimensions"),
        ({"input": "a", "dimensions": 385}, 400, "bad_dimension", "dimensions"),
        ({"input": "a", "dimensions": "x"}, 400, None, None),
        ({}, 400, None, None),
        ({"input": "a", "model": "text-embedding-3-small"}, 404, "model_not_found", "model"),
    ],
)
def test_a_bad_request_is_an_error_object(body: object, status: int, code: str | None, param: str | None) -> None:
    answer = post(PATH, body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)


def test_token_ids_are_refused_with_what_to_do_instead() -> None:
    assert "send the texts" in post(PATH, {"input": [[1, 2]]}).json()["error"]["message"]


def test_other_names_of_the_model_are_those_that_are_known_or_configured() -> None:
    gemma = FakePool(card=ModelCard("embeddinggemma-300m", 384, 512, "f"))
    for name in ("embeddinggemma-300m", "onnx-community/embeddinggemma-300m-ONNX", "Google/EmbeddingGemma-300m", ""):
        assert post(PATH, {"input": "a", "model": name}, gemma).status_code == 200, name
    assert post(PATH, {"input": "a", "model": "mine"}, gemma).status_code == 404
    assert post(PATH, {"input": "a", "model": "mine"}, gemma, Options(aliases=("mine",))).status_code == 200
    assert post(PATH, {"input": "a", "model": "mine"}, gemma, Options(aliases=("*",))).status_code == 200


def test_overload_says_when_to_come_again() -> None:
    answer = post(PATH, {"input": "a"}, FakePool(errors.Overloaded("full", retry_after_ms=250)))
    assert answer.status_code == 429
    assert (answer.headers["retry-after-ms"], answer.headers["retry-after"]) == ("250", "1")
    assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_long_text_is_cut_unless_the_request_or_the_gateway_says_otherwise() -> None:
    for options, fields, truncate in (
        (Options(), {}, True),
        (Options(), {"truncate": False}, False),
        (Options(auto_truncate=False), {}, False),
    ):
        pool = FakePool()
        post(PATH, {"input": "a", **fields}, pool, options)
        assert pool.asked["truncate"] is truncate


def test_models_are_listed_and_found_by_name() -> None:
    listed = request("GET", "/v1/models").json()
    assert listed["object"] == "list"
    assert [(each["id"], each["object"]) for each in listed["data"]] == [("echo:384", "model")]
    assert request("GET", "/v1/models/echo:384").json()["id"] == "echo:384"
    missing = request("GET", "/v1/models/some/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
