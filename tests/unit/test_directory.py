"""A model directory that is read wrongly gives vectors that are slightly wrong, which nobody notices. So every layout that is
known is built here in a temporary directory, and what is not known must be an error that names the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from embedpool.errors import ModelError
from embedpool.models.directory import read

MEAN = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
POOLING = "1_Pooling/config.json"
PROMPTS = "config_sentence_transformers.json"
SENTENCE = "sentence_bert_config.json"
TOKENIZER = "tokenizer_config.json"


def _model(directory: Path, files: Mapping[str, Any], without: str = "") -> Path:
    """A directory with a graph, a tokenizer and mean pooling, and these files: text as it is, all else as JSON."""
    for name, content in ({"onnx/model.onnx": "graph", "tokenizer.json": "{}", POOLING: MEAN} | dict(files)).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != without:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def _modules(*kinds: str, **places: str) -> list[dict[str, str]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling"} | places
    return [{"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, f"9_{kind}")} for kind in kinds]


def _refused(directory: Path, *words: str, pooling: str = "auto") -> None:
    with pytest.raises(ModelError) as caught:
        read(directory, pooling=pooling)
    for word in words:
        assert word in caught.value.message


# ── pooling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (MEAN, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_pooling_is_what_the_file_says(tmp_path: Path, config: dict[str, Any], pooling: str) -> None:
    assert read(_model(tmp_path, {POOLING: config})).pooling == pooling


@pytest.mark.parametrize(
    "config",
    [
        MEAN | {"pooling_mode_cls_token": True},
        MEAN | {"pooling_mode_max_tokens": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode_mean_tokens": False},
        {"word_embedding_dimension": 8},
        {"pooling_mode": "max"},
        {"pooling_mode": ["mean", "cls"]},
    ],
    ids=str,
)
def test_pooling_that_is_not_one_known_mode_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    _refused(_model(tmp_path, {POOLING: config}), str(tmp_path / POOLING), "mean, cls and last")


def test_pooling_without_the_prompt_is_refused(tmp_path: Path) -> None:
    _refused(_model(tmp_path, {POOLING: MEAN | {"include_prompt": False}}), str(tmp_path / POOLING), "prompt")


def test_pooling_that_no_file_speaks_of_is_not_guessed(tmp_path: Path) -> None:
    assert read(_model(tmp_path, {}, without=POOLING)).pooling is None


@pytest.mark.parametrize("asked", ["none", "mean", "cls", "last"])
def test_pooling_that_was_asked_for_beats_the_file(tmp_path: Path, asked: str) -> None:
    assert read(_model(tmp_path, {POOLING: {"pooling_mode": "max"}}), pooling=asked).pooling == asked


def test_pooling_that_does_not_exist_cannot_be_asked_for(tmp_path: Path) -> None:
    _refused(_model(tmp_path, {}), "auto or one of none, mean, cls, last", "'max'", pooling="max")


def test_pooling_is_read_where_modules_json_says(tmp_path: Path) -> None:
    modules = _modules("Transformer", "Pooling", Pooling="2_Pooling")
    assert read(_model(tmp_path, {"modules.json": modules, "2_Pooling/config.json": {"pooling_mode": "cls"}})).pooling == "cls"


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_plain_directory_is_read(tmp_path: Path) -> None:
    found = read(_model(tmp_path, {}))
    assert (found.onnx, found.tokenizer) == (tmp_path / "onnx/model.onnx", tmp_path / "tokenizer.json")
    assert (found.dense, found.lowercase, found.prompts, found.default_prompt, found.max_tokens) == (False, False, {}, "", None)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "nowhere is not a directory")


def test_a_missing_tokenizer_or_graph_is_named(tmp_path: Path) -> None:
    _refused(_model(tmp_path / "a", {}, without="tokenizer.json"), str(tmp_path / "a"), "tokenizer.json")
    _refused(
        _model(tmp_path / "b", {}, without="onnx/model.onnx"), str(tmp_path / "b"), "onnx/model.onnx or model.onnx", "none"
    )


def test_several_graphs_are_named_with_the_remedy(tmp_path: Path) -> None:
    _model(tmp_path, {"onnx/model_q8.onnx": "", "b.onnx": ""}, without="onnx/model.onnx")
    _refused(tmp_path, str(tmp_path), "b.onnx, onnx/model_q8.onnx", "--onnx-file")


@pytest.mark.parametrize(
    ("graphs", "chosen"),
    [
        (["onnx/model.onnx", "model.onnx", "onnx/model_q8.onnx"], "onnx/model.onnx"),
        (["model.onnx", "onnx/model_q8.onnx"], "model.onnx"),
        (["onnx/model_q8.onnx"], "onnx/model_q8.onnx"),
    ],
)
def test_the_usual_graph_is_taken_or_the_only_one(tmp_path: Path, graphs: list[str], chosen: str) -> None:
    _model(tmp_path, dict.fromkeys(graphs, ""), without="" if "onnx/model.onnx" in graphs else "onnx/model.onnx")
    assert read(tmp_path).onnx == tmp_path / chosen


def test_a_graph_that_was_asked_for_beats_the_usual_one(tmp_path: Path) -> None:
    assert read(_model(tmp_path, {"onnx/model_q8.onnx": ""}), "onnx/model_q8.onnx").onnx == tmp_path / "onnx/model_q8.onnx"


def test_a_graph_that_was_asked_for_and_is_not_there_is_named_for_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"onnx/q4\.onnx") as caught:
        read(_model(tmp_path, {}), "onnx/q4.onnx")
    assert "to turn texts into tokens" not in caught.value.message


def test_the_body_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    files = {
        "modules.json": _modules("Transformer", "Pooling", Transformer="0_Transformer"),
        "0_Transformer/tokenizer.json": "{}",
        f"0_Transformer/{SENTENCE}": {"max_seq_length": 99, "do_lower_case": True},
    }
    found = read(_model(tmp_path, files))
    assert (found.tokenizer, found.max_tokens, found.lowercase) == (tmp_path / "0_Transformer/tokenizer.json", 99, True)


@pytest.mark.parametrize(
    ("kinds", "dense"), [(("Dense",), True), (("Dense", "Dense", "Normalize"), True), (("Normalize",), False)]
)
def test_layers_behind_the_pooling_are_noticed(tmp_path: Path, kinds: tuple[str, ...], dense: bool) -> None:
    assert read(_model(tmp_path, {"modules.json": _modules("Transformer", "Pooling", *kinds)})).dense is dense


def test_a_layer_that_is_not_known_is_refused_by_its_name(tmp_path: Path) -> None:
    _refused(_model(tmp_path, {"modules.json": _modules("Transformer", "Pooling", "LayerNorm")}), "modules.json", "LayerNorm")


# ── limits and prompts ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "config", "limit"),
    [
        (128, 512, 514, 128),
        (256, 128, 514, 256),
        (None, 512, 514, 512),
        (None, None, 514, 514),
        (None, 1e30, 514, 514),
        (None, 1e30, None, None),
        (None, 512.0, None, 512),
        (0, -1, "514", None),
    ],
)
def test_the_longest_text_is_what_the_nearest_file_says(
    tmp_path: Path, sentence: Any, tokenizer: Any, config: Any, limit: int | None
) -> None:
    files = {
        SENTENCE: {"max_seq_length": sentence},
        TOKENIZER: {} if tokenizer is None else {"model_max_length": tokenizer},
        "config.json": {"max_position_embeddings": config},
    }
    assert read(_model(tmp_path, files)).max_tokens == limit


def test_the_limit_beside_the_tokenizer_that_is_used_counts(tmp_path: Path) -> None:
    files = {
        "modules.json": _modules("Transformer", "Pooling", Transformer="0_Transformer"),
        "0_Transformer/tokenizer.json": "{}",
        f"0_Transformer/{TOKENIZER}": {"model_max_length": 256},
        "0_Transformer/config.json": {"max_position_embeddings": 512},
    }
    assert read(_model(tmp_path, files)).max_tokens == 256


def test_prompts_and_the_default_among_them_are_read(tmp_path: Path) -> None:
    found = read(_model(tmp_path, {PROMPTS: {"prompts": {"query": "Q: ", "doc": "D: "}, "default_prompt_name": "doc"}}))
    assert (found.prompts, found.default_prompt) == ({"query": "Q: ", "doc": "D: "}, "doc")


@pytest.mark.parametrize("content", [{}, {"prompts": None, "default_prompt_name": None}, {"prompts": {}}])
def test_no_prompts_are_no_prompts(tmp_path: Path, content: dict[str, Any]) -> None:
    found = read(_model(tmp_path, {PROMPTS: content}))
    assert (found.prompts, found.default_prompt) == ({}, "")


def test_an_empty_prompt_is_still_a_prompt_that_can_be_named(tmp_path: Path) -> None:
    assert read(_model(tmp_path, {PROMPTS: {"prompts": {"query": "Q: ", "document": ""}}})).prompts["document"] == ""


def test_a_default_prompt_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    _refused(_model(tmp_path, {PROMPTS: {"prompts": {"query": "Q: "}, "default_prompt_name": "qery"}}), PROMPTS, "qery")


@pytest.mark.parametrize("name", ["modules.json", SENTENCE, PROMPTS, TOKENIZER, "config.json", POOLING])
@pytest.mark.parametrize("content", ["{", "", "3", '{"a": "\udcff"}'])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    _model(tmp_path, {})
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    _refused(tmp_path, str(tmp_path / name))


@pytest.mark.parametrize("prompts", [["query"], "query: "])
def test_prompts_that_are_no_object_are_refused(tmp_path: Path, prompts: Any) -> None:
    _refused(_model(tmp_path, {PROMPTS: {"prompts": prompts}}), str(tmp_path / PROMPTS))
