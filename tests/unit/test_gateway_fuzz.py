"""Whatever a body is, it is answered, in its dialect, and never with 500: against a pool that answers everything."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway import request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TEXTS = st.text(max_size=20) | st.lists(st.text(max_size=20), max_size=40) | JSON
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "/embed": {"inputs": TEXTS, "truncate": JSON, "truncation_direction": JSON, "dimensions": JSON, "normalize": JSON},
    "/": {"inputs": TEXTS},
    "/similarity": {"inputs": st.fixed_dictionaries({"source_sentence": TEXTS, "sentences": TEXTS}) | JSON, "parameters": JSON},
    "/v1/embeddings": {
        "input": TEXTS,
        "model": JSON,
        "encoding_format": JSON,
        "dimensions": st.integers() | JSON,
        "user": JSON,
    },
    "/api/v1/embed": {"texts": TEXTS, "inputs": TEXTS, "model": st.text() | JSON, "pooling": JSON, "normalize": JSON},
    "/tokenize": {"inputs": TEXTS},
    "/embed_all": {"inputs": TEXTS},
}
COMMON = {"prompt_name": JSON, "priority": JSON, "timeout_ms": st.floats() | JSON}


def check(path: str, answer: httpx.Response) -> None:
    """A success, or an error of the client's in the dialect's form."""
    assert answer.status_code < 500, (answer.status_code, answer.text)
    if answer.status_code == 200:
        assert answer.json() is not None
    elif path.startswith("/v1/"):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    elif path.startswith("/api/"):
        assert answer.headers["content-type"].startswith("text/plain")
    else:
        assert set(answer.json()) == {"error", "error_type"}


@pytest.mark.parametrize("path", FIELDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_body_of_the_right_fields_with_any_values_is_never_a_500(path: str, data: st.DataObject) -> None:
    body = data.draw(st.fixed_dictionaries({}, optional={**FIELDS[path], **COMMON}) | JSON)
    sent = json.dumps(body).encode()  # with NaN, Infinity and escaped surrogates, as careless clients send them
    check(path, request("POST", path, content=sent, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("path", FIELDS)
@settings(max_examples=30, deadline=None)
@given(body=st.binary(max_size=200))
def test_a_body_of_any_bytes_is_never_a_500(path: str, body: bytes) -> None:
    check(path, request("POST", path, content=body, headers={"content-type": "application/json"}))


@settings(max_examples=60, deadline=None)
@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                "x-embedpool-timeout-ms",
                "x-embedpool-priority",
                "x-embedpool-prompt-name",
                "accept",
                "authorization",
                "content-type",
            ]
        ),
        st.binary(max_size=30),
    )
)
def test_headers_of_any_bytes_are_never_a_500(headers: dict[str, bytes]) -> None:
    named = {"content-type": b"application/json", **headers}
    answer = request("POST", "/embed", content=b'{"inputs":"a"}', headers=[(k.encode(), v) for k, v in named.items()])
    assert answer.status_code < 500
