"""Routes that speak of tokens, on a gateway that its supervisor has told of the model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.faults.test_gateways import LISTEN, url_of
from tests.support import serving

TEXT = "Mars is red."


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("--http", LISTEN, model="minilm") as server:
        yield url_of(server)


def post(url: str, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}{path}", json=body, timeout=20)


def test_tokens_say_where_they_stand_in_the_text(url: str) -> None:
    (tokens,) = post(url, "/tokenize", inputs=TEXT).json()
    assert [token["text"] for token in tokens] == ["[CLS]", "Mars", "is", "red", ".", "[SEP]"]
    assert [token["special"] for token in tokens] == [True, False, False, False, False, True]
    assert tokens[0] == {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert all(TEXT[token["start"] : token["stop"]] == token["text"] for token in tokens[1:-1])


def test_special_tokens_can_be_left_out_and_texts_can_be_several(url: str) -> None:
    found = post(url, "/tokenize", inputs=[TEXT, "é 🙂 x"], add_special_tokens=False).json()
    assert [len(tokens) for tokens in found] == [4, 3]
    assert [token["text"] for token in found[1]] == ["é", "🙂", "x"]


def test_token_ids_give_the_vector_of_the_text_that_they_stand_for(url: str) -> None:
    (tokens,) = post(url, "/tokenize", inputs="mars is red.").json()
    ids = [token["id"] for token in tokens]
    by_text = np.array(post(url, "/embed", inputs="mars is red.").json())
    for inputs in (ids, [ids], ["mars is red."]):
        assert np.array_equal(np.array(post(url, "/embed", inputs=inputs).json()), by_text)
    mixed = np.array(post(url, "/embed", inputs=["mars is red.", ids]).json())
    assert np.array_equal(mixed, np.vstack([by_text, by_text]))


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/embed", {"inputs": [[10**9]]}, 422, "Tokenizer"),
        ("/embed", {"inputs": [[-1]]}, 422, "Tokenizer"),
        ("/embed", {"inputs": [1, "text"]}, 422, "Validation"),
        ("/embed", {"inputs": [[1, 2]] * 33}, 422, "Validation"),
        ("/tokenize", {"inputs": []}, 400, "Empty"),
        ("/tokenize", {"inputs": ["x"] * 33}, 422, "Validation"),
        ("/tokenize", {"inputs": "x", "prompt_name": "nothing"}, 422, "Validation"),
        ("/tokenize", {"inputs": 7}, 422, "Validation"),
    ],
    ids=str,
)
def test_what_cannot_be_tokenized_is_refused_in_teis_words(
    path: str, body: dict[str, Any], status: int, kind: str, url: str
) -> None:
    answer = post(url, path, **body)
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind)


def test_a_model_without_a_tokenizer_says_so() -> None:
    with serving("--http", LISTEN) as server:
        assert post(url_of(server), "/tokenize", inputs="x").status_code == 424
        assert post(url_of(server), "/embed", inputs=[1, 2]).status_code == 422
