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
from embedpool.models import directory
from embedpool.models.directory import ModelFiles, weight_files

GRAPHS = ("onnx/model.onnx", "model.onnx")  # the names that are looked for
MEAN = {"word_embedding_dimension": 8, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
POOLING = "1_Pooling/config.json"
PROMPTS = "config_sentence_transformers.json"
SENTENCE = "sentence_bert_config.json"
TOKENIZER = "tokenizer_config.json"


def _model(place: Path, files: Mapping[str, Any], without: str = "") -> Path:
    """A directory with a graph, a tokenizer and mean pooling, and these files: text as it is, all else as JSON."""
    for name, content in ({"onnx/model.onnx": "graph", "tokenizer.json": "{}", POOLING: MEAN} | dict(files)).items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != without:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return place


def _modules(*kinds: str, **places: str) -> list[dict[str, str]]:
    paths = {"Transformer": "", "Pooling": "1_Pooling"} | places
    return [{"type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, f"9_{kind}")} for kind in kinds]


def read(place: Path, *graphs: str, pooling: str = "auto", any_graph: bool = False) -> ModelFiles:
    return directory.read(place, graphs or GRAPHS, pooling, any_graph=any_graph)


def _refused(place: Path, *words: str, pooling: str = "auto", any_graph: bool = False) -> None:
    with pytest.raises(ModelError) as caught:
        read(place, pooling=pooling, any_graph=any_graph)
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
    found = read(_model(tmp_path, {"config.json": {"model_type": "bert"}}))
    assert found == ModelFiles(
        directory=tmp_path,
        onnx=tmp_path / "onnx/model.onnx",
        weights=(),
        tokenizer=tmp_path / "tokenizer.json",
        pad="",
        config={"model_type": "bert"},
        pooling="mean",
        dense=(),
        normalize=False,
        max_tokens=None,
        lowercase=False,
        prompts={},
        default_prompt="",
    )


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "nowhere", "nowhere is not a directory")


def test_a_missing_tokenizer_or_graph_is_named(tmp_path: Path) -> None:
    _refused(_model(tmp_path / "a", {}, without="tokenizer.json"), str(tmp_path / "a"), "tokenizer.json")
    neither = "neither onnx/model.onnx nor model.onnx nor model.safetensors"
    for any_graph in (True, False):
        place = _model(tmp_path / "b", {}, without="onnx/model.onnx")
        _refused(place, str(tmp_path / "b"), neither, "no ONNX file at all", any_graph=any_graph)


def test_weights_in_pickles_are_named_with_the_reason_why_they_are_not_read(tmp_path: Path) -> None:
    _model(tmp_path, {"pytorch_model.bin": ""}, without="onnx/model.onnx")
    _refused(tmp_path, "no ONNX file at all", "pytorch_model.bin is not read", "program", "safetensors")
    with pytest.raises(ModelError) as caught:
        read(_model(tmp_path / "b", {}, without="onnx/model.onnx"))
    assert "pytorch_model.bin" not in caught.value.message


@pytest.mark.parametrize("any_graph", [True, False])
def test_several_graphs_are_named_with_the_remedy(tmp_path: Path, any_graph: bool) -> None:
    _model(tmp_path, {"onnx/model_q8.onnx": "", "b.onnx": ""}, without="onnx/model.onnx")
    neither = "neither onnx/model.onnx nor model.onnx nor model.safetensors"
    _refused(tmp_path, str(tmp_path), neither, "it has b.onnx, onnx/model_q8.onnx", "--onnx-file", any_graph=any_graph)


@pytest.mark.parametrize(
    ("graphs", "chosen"),
    [
        (["onnx/model.onnx", "model.onnx", "onnx/model_q8.onnx"], "onnx/model.onnx"),
        (["model.onnx", "onnx/model_q8.onnx"], "model.onnx"),
        (["onnx/model_q8.onnx"], "onnx/model_q8.onnx"),
        (["some/where/else.onnx"], "some/where/else.onnx"),
    ],
)
def test_the_usual_graph_is_taken_or_the_only_one(tmp_path: Path, graphs: list[str], chosen: str) -> None:
    _model(tmp_path, dict.fromkeys(graphs, ""), without="" if "onnx/model.onnx" in graphs else "onnx/model.onnx")
    found = read(tmp_path, any_graph=True)
    assert (found.onnx, found.weights) == (tmp_path / chosen, ())
    if chosen in GRAPHS:
        assert read(tmp_path).onnx == tmp_path / chosen
    else:
        _refused(tmp_path, f"it has {chosen} (choose with --onnx-file)")


def test_the_first_name_that_is_there_is_taken_whatever_else_is(tmp_path: Path) -> None:
    _model(tmp_path, {"model.onnx": "", "onnx/model_q8.onnx": "", "model.safetensors": ""})
    for names in (("onnx/q4.onnx", "onnx/model_q8.onnx", "model.onnx"), ("onnx/model_q8.onnx",)):
        found = read(tmp_path, *names)
        assert (found.onnx, found.weights) == (tmp_path / "onnx/model_q8.onnx", ())


def test_a_graph_that_was_asked_for_beats_the_usual_one(tmp_path: Path) -> None:
    assert read(_model(tmp_path, {"onnx/model_q8.onnx": ""}), "onnx/model_q8.onnx").onnx == tmp_path / "onnx/model_q8.onnx"


def test_a_graph_that_was_asked_for_and_is_not_there_is_named_for_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"onnx/q4\.onnx") as caught:
        read(_model(tmp_path, {}), "onnx/q4.onnx")
    assert "to turn texts into tokens" not in caught.value.message
    assert "onnx/model.onnx" in caught.value.message


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def _sharded(*names: str) -> dict[str, Any]:
    return {INDEX: {"weight_map": {f"layer.{i}": name for i, name in enumerate(names)}}}


@pytest.mark.parametrize("any_graph", [True, False])
def test_weights_are_taken_where_no_usual_graph_is_even_if_there_is_an_unusual_one(tmp_path: Path, any_graph: bool) -> None:
    _model(tmp_path, {"model.safetensors": "", "onnx/model_q8.onnx": ""}, without="onnx/model.onnx")
    found = read(tmp_path, any_graph=any_graph)
    assert (found.onnx, found.weights) == (None, (tmp_path / "model.safetensors",))


def test_weights_in_several_files_are_each_named_once_and_in_order(tmp_path: Path) -> None:
    files = _sharded(SHARDS[1], SHARDS[0], SHARDS[1]) | dict.fromkeys(SHARDS, "")
    found = read(_model(tmp_path, files, without="onnx/model.onnx"))
    assert (found.onnx, found.weights) == (None, tuple(tmp_path / name for name in SHARDS))
    (tmp_path / "model.safetensors").write_text("")
    assert weight_files(tmp_path) == (tmp_path / "model.safetensors",)


def test_weights_lie_with_the_body(tmp_path: Path) -> None:
    modules = {"modules.json": _modules("Transformer", "Pooling", Transformer="0_Transformer"), "model.safetensors": ""}
    _model(tmp_path, modules, without="onnx/model.onnx")
    _refused(tmp_path, "nor model.safetensors")
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "0_Transformer/model.safetensors").write_text("")
    assert read(tmp_path).weights == (tmp_path / "0_Transformer/model.safetensors",)


@pytest.mark.parametrize("missing", [SHARDS[0], SHARDS[1], "../other.safetensors", "/etc/passwd", "", "sub/w.safetensors"])
def test_weights_that_are_not_beside_their_index_are_refused(tmp_path: Path, missing: str) -> None:
    (tmp_path / "other.safetensors").write_text("")
    files = _sharded(*SHARDS, missing) | {name: "" for name in (*SHARDS, "sub/w.safetensors") if name != missing}
    place = _model(tmp_path / "m", files | ({"sub/w.safetensors": ""} if "sub" in missing else {}), without="onnx/model.onnx")
    _refused(place, str(place / INDEX), "not beside it", "download the model again")


@pytest.mark.parametrize("content", [{}, {"weight_map": ["a"]}, {"weight_map": {"a": 5}}, "{", "[]"], ids=str)
def test_an_index_that_names_no_files_is_named(tmp_path: Path, content: Any) -> None:
    _refused(_model(tmp_path, {INDEX: content}, without="onnx/model.onnx"), str(tmp_path / INDEX))


def test_weights_are_not_looked_at_where_a_graph_is(tmp_path: Path) -> None:
    assert read(_model(tmp_path, {INDEX: "{"})).weights == ()


# ── modules ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_body_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    files = {
        "modules.json": _modules("Transformer", "Pooling", Transformer="0_Transformer"),
        "0_Transformer/tokenizer.json": "{}",
        f"0_Transformer/{SENTENCE}": {"max_seq_length": 99, "do_lower_case": True},
    }
    found = read(_model(tmp_path, files | {"0_Transformer/config.json": {"a": 1}, "config.json": {"b": 2}}))
    assert (found.tokenizer, found.max_tokens, found.lowercase) == (tmp_path / "0_Transformer/tokenizer.json", 99, True)
    assert found.config == {"a": 1}


def _layers(*rows: tuple[str, str]) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in rows]


@pytest.mark.parametrize(
    ("rows", "dense", "normalize"),
    [
        ([], [], False),
        ([("Dense", "2_Dense")], ["2_Dense"], False),
        ([("Normalize", "2_Normalize")], [], True),
        ([("Dense", "2_Dense"), ("Dense", "3_Dense"), ("Normalize", "4_Normalize")], ["2_Dense", "3_Dense"], True),
        ([("Dense", "9_Dense"), ("Dense", "10_Dense"), ("Dense", "1_Dense")], ["9_Dense", "10_Dense", "1_Dense"], False),
    ],
)
def test_layers_behind_the_pooling_are_noticed_in_their_order(
    tmp_path: Path, rows: list[tuple[str, str]], dense: list[str], normalize: bool
) -> None:
    modules = _layers(("Transformer", ""), ("Pooling", "1_Pooling"), *rows)
    found = read(_model(tmp_path, {"modules.json": modules}))
    assert (found.dense, found.normalize) == (tuple(tmp_path / name for name in dense), normalize)


@pytest.mark.parametrize(
    "kinds",
    [
        ("Transformer", "Dense", "Pooling"),
        ("Pooling", "Transformer"),
        ("Transformer", "Pooling", "Normalize", "Dense"),
        ("Transformer", "Normalize", "Pooling"),
    ],
)
def test_layers_in_another_order_are_refused_not_sorted(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    _refused(_model(tmp_path, {"modules.json": _modules(*kinds)}), str(tmp_path / "modules.json"), "order", ", ".join(kinds))


@pytest.mark.parametrize("place", ["..", "../other", "/etc", "1_Pooling/../../other"])
@pytest.mark.parametrize("kind", ["Transformer", "Pooling", "Dense"])
def test_a_layer_outside_of_the_directory_is_refused(tmp_path: Path, place: str, kind: str) -> None:
    rows = [(each, place if each == kind else path) for each, path in (("Transformer", ""), ("Pooling", "1_Pooling"))]
    rows += [("Dense", place)] if kind == "Dense" else []
    _refused(_model(tmp_path / "m", {"modules.json": _layers(*rows)}), "modules.json", place, "outside")


@pytest.mark.parametrize("content", [[{"type": "a.Pooling"}], [{"path": ""}], [5], {"type": "a.Pooling", "path": ""}], ids=str)
def test_modules_without_type_or_path_are_named(tmp_path: Path, content: Any) -> None:
    _refused(_model(tmp_path, {"modules.json": content}), str(tmp_path / "modules.json"), "cannot be read")


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


@pytest.mark.parametrize(
    ("token", "pad"),
    [("<pad>", "<pad>"), ({"content": "[PAD]", "lstrip": False}, "[PAD]"), (None, ""), ("", ""), ({}, "")],
    ids=str,
)
def test_the_padding_token_is_named_by_the_tokenizers_own_file(tmp_path: Path, token: Any, pad: str) -> None:
    files = {TOKENIZER: {"pad_token": token, "model_max_length": 5}, "modules.json": _modules("Transformer", "Pooling")}
    assert read(_model(tmp_path / "a", files)).pad == pad
    assert read(_model(tmp_path / "b", files | {TOKENIZER: {"model_max_length": 5}})).pad == ""
    body = {"modules.json": _modules("Transformer", "Pooling", Transformer="0_T"), f"0_T/{TOKENIZER}": {"pad_token": "own"}}
    assert read(_model(tmp_path / "c", files | body)).pad == "own"


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
