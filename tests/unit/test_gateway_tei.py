"""Text Embeddings Inference's routes: shapes, texts, statuses, and what versions differ in."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np
import pytest

from embedpool import errors
from embedpool.gateway.options import Options
from tests.gateway import FakePool, app_of, post, request
from tests.support import expected, same

OLD = Options(compat=frozenset({"tei-1.8"}))


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize("inputs", ["a text", ["a text"]])
def test_the_answer_is_a_bare_array_with_a_row_per_text(path: str, inputs: object) -> None:
    body = post(path, {"inputs": inputs}).json()
    assert same(np.array(body, np.float32), ["a text"])


def test_numbers_in_json_are_the_same_float32_again() -> None:
    body = post("/embed", {"inputs": ["one", "two"]}).json()
    assert np.array_equal(np.array(body, np.float32), expected(["one", "two"]))


def test_headers_say_what_is_known_of_the_request() -> None:
    headers = post("/embed", {"inputs": ["one", "three"]}).headers
    assert headers["x-compute-tokens"] == "4"
    assert headers["x-compute-characters"] == "8"
    assert int(headers["x-total-time"]) >= 0
    assert headers["x-embedpool-fingerprint"] == "echo-384-1"
    assert [headers[f"x-{name}-time"] for name in ("queue", "tokenization", "inference")] == ["3", "1", "20"]


def test_fields_reach_the_pool() -> None:
    pool = FakePool()
    post("/embed", {"inputs": "a", "normalize": False, "dimensions": 16, "prompt_name": "query"}, pool)
    assert pool.asked["normalize"] is False
    assert pool.asked["dim"] == 16
    assert pool.asked["prompt_name"] == "query"


@pytest.mark.parametrize(
    ("options", "fields", "truncate"),
    [
        (Options(), {}, "right"),
        (Options(), {"truncate": None}, "right"),
        (Options(), {"truncate": False}, False),
        (Options(), {"truncation_direction": "Left"}, "left"),
        (Options(), {"truncate": True, "truncation_direction": "left"}, "left"),
        (OLD, {}, False),
        (OLD, {"truncate": True}, "right"),
        (Options(auto_truncate=False), {}, False),
        (Options(compat=frozenset({"tei-1.8"}), auto_truncate=True), {}, "right"),
    ],
)
def test_long_texts_are_cut_as_the_request_says_or_the_version_does(
    options: Options, fields: dict[str, object], truncate: object
) -> None:
    pool = FakePool()
    assert post("/embed", {"inputs": "a", **fields}, pool, options).status_code == 200
    assert pool.asked["truncate"] == truncate


VALIDATION = [
    ({"inputs": ["a"] * 33}, "batch size 33 > maximum allowed batch size 32"),
    ({"inputs": "a", "dimensions": 0}, "`dimensions` should be positive"),
    ({"inputs": "a", "dimensions": 385}, "`dimensions` should be smaller than the maximum embedding dimension."),
    (
        {"inputs": [1, 2]},
        "`inputs` must be text: this gateway does not know the model's tokenizer, by which token ids are read",
    ),
    (
        {"inputs": [[1, 2], "a"]},
        "`inputs` must be text: this gateway does not know the model's tokenizer, by which token ids are read",
    ),
]


@pytest.mark.parametrize(("body", "text"), VALIDATION)
def test_what_tei_refuses_is_refused_in_its_words(body: object, text: str) -> None:
    answer = post("/embed", body)
    assert (answer.status_code, answer.json()) == (422, {"error": text, "error_type": "Validation"})
    assert post("/embed", body, options=OLD).status_code == 413


def test_a_negative_dimension_is_an_error_of_the_bodys_types() -> None:
    answer = post("/embed", {"inputs": "a", "dimensions": -1})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("Failed to deserialize the JSON body into the target type: dimensions")


def test_no_text_is_400_empty_in_every_version() -> None:
    said = {"error": "`inputs` cannot be empty", "error_type": "Empty"}
    for options in (Options(), OLD):
        answer = post("/embed", {"inputs": []}, options=options)
        assert (answer.status_code, answer.json()) == (400, said)


@pytest.mark.parametrize(
    ("error", "status", "kind", "text"),
    [
        (errors.Overloaded("what the pool says"), 429, "Overloaded", "Model is overloaded"),
        (
            errors.TextTooLong("text 0 has 600 tokens, the model reads 512: shorten it or let truncate be true"),
            422,
            "Validation",
            "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
        ),
        (errors.NotRunning("nobody there"), 503, "Unhealthy", "nobody there"),
        (errors.EncodeFailed("the run raised"), 424, "Backend", "the run raised"),
        (errors.UnknownPrompt("no such prompt"), 422, "Validation", "no such prompt"),
        (errors.TimedOut("too late"), 504, "Backend", "too late"),
    ],
)
def test_errors_of_the_pool_become_teis(error: errors.EmbedpoolError, status: int, kind: str, text: str) -> None:
    answer = post("/embed", {"inputs": "a"}, FakePool(error))
    assert (answer.status_code, answer.json()) == (status, {"error": text, "error_type": kind})


def test_every_error_of_the_tree_has_a_status_and_none_is_500() -> None:
    for kind in errors.BY_CODE.values():
        answer = post("/embed", {"inputs": "a"}, FakePool(kind("why")))
        assert 400 <= answer.status_code < 600
        assert answer.status_code != 500
        assert set(answer.json()) == {"error", "error_type"}


def test_similarity_gives_cosines_to_the_source() -> None:
    body = {"inputs": {"source_sentence": "one", "sentences": ["one", "two"]}}
    found = post("/similarity", body).json()
    vectors = expected(["one", "one", "two"])
    assert np.allclose(found, vectors[1:] @ vectors[0], atol=1e-6)


def test_similarity_has_limits_and_parameters() -> None:
    def of(n: int, **more: object) -> dict[str, object]:
        return {"inputs": {"source_sentence": "one", "sentences": ["x"] * n}, **more}

    assert post("/similarity", of(0)).json() == {"error": "`inputs.sentences` cannot be empty", "error_type": "Empty"}
    assert post("/similarity", of(32)).json()["error"] == "batch size 33 > maximum allowed batch size 32"
    pool = FakePool()
    post("/similarity", of(1, parameters={"prompt_name": "query", "truncate": True, "truncation_direction": "Left"}), pool)
    assert (pool.asked["prompt_name"], pool.asked["truncate"]) == ("query", "left")


@pytest.mark.parametrize("path", ["/embed_all", "/tokenize"])
def test_what_a_pool_cannot_do_is_424_and_says_why(path: str) -> None:
    answer = post(path, {"inputs": "a"})
    assert (answer.status_code, answer.json()["error_type"]) == (424, "Backend")
    assert "not available" in answer.json()["error"]


def test_info_tells_the_model_and_the_limits() -> None:
    found = request("GET", "/info", options=Options(max_client_batch=8)).json()
    assert found["model_id"] == "echo:384"
    assert found["model_sha"] is None
    assert found["model_dtype"] == "float32"
    assert found["model_type"] == {"embedding": {"pooling": "mean"}}
    assert found["max_input_length"] == 512
    assert found["max_client_batch_size"] == 8
    assert found["max_batch_tokens"] == 8 * 512
    assert found["max_concurrent_requests"] == 512
    assert found["auto_truncate"] is True
    assert found["tokenization_workers"] == 2
    assert request("GET", "/info", options=OLD).json()["auto_truncate"] is False


def test_metrics_hold_the_gateways_numbers_and_the_pools() -> None:
    text = request("GET", "/metrics").text
    assert "embedpool_up 1.0" in text
    assert "embedpool_queue_rows 7.0" in text
    assert "te_queue_size 7.0" in text
    assert 'te_batch_next_tokens_bucket{le="32.0"} 1.0' in text or 'te_batch_next_tokens_bucket{le="32"} 1.0' in text
    assert "embedpool_gateway_requests_open 1.0" in text


def test_metrics_of_a_pool_that_does_not_answer_say_so() -> None:
    answer = request("GET", "/metrics", FakePool(errors.NotRunning("nobody")))
    assert answer.status_code == 200
    assert "embedpool_up 0.0" in answer.text
    assert "embedpool_queue" not in answer.text
    assert "te_queue_size" not in answer.text


async def _numbers(*bodies: object, error: Exception | None = None) -> str:
    """/metrics of one gateway after these requests to /embed."""
    transport = httpx.ASGITransport(app_of(FakePool(error)))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        for body in bodies:
            await client.post("/embed", json=body)
        return (await client.get("/metrics")).text


def test_requests_count_under_teis_names() -> None:
    text = asyncio.run(_numbers({"inputs": "a"}, {"inputs": ["a", "b"]}, {"inputs": []}))
    assert 'te_request_count{method="single"} 1.0' in text
    assert 'te_request_count{method="batch"} 2.0' in text
    assert 'te_request_success{method="batch"} 1.0' in text
    assert 'te_request_failure{err="validation"} 1.0' in text
    assert "te_embed_count 3.0" in text
    assert "te_embed_success 3.0" in text
    assert "te_request_duration_count 2.0" in text
    assert "te_request_queue_duration_sum 0.0064" in text
    assert "te_request_tokenization_duration_sum 0.0018" in text
    assert "te_request_inference_duration_sum 0.04" in text
    assert "embedpool_gateway_deliver_seconds_count 2.0" in text


def test_refusals_of_the_pool_count_by_reason() -> None:
    text = asyncio.run(_numbers({"inputs": "a"}, error=errors.Overloaded("full")))
    assert 'te_request_failure{err="overloaded"} 1.0' in text
    assert "te_request_success{" not in text
    assert "te_embed_count 1.0" in text
    assert "te_embed_success 0.0" in text
