"""Models from a directory: found, read as their files say, and refused by the name of the file that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embedpool import Pool
from embedpool.errors import ModelError
from tests.fixtures import tiny

PROMPTS = {"prompts": {"query": "q ", "document": ""}, "default_prompt_name": None}


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_directory_is_pooled_as_its_files_say_with_weights_inside_or_beside_the_graph(pooling: str, tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "tiny", pooling, external=pooling != "cls")
    texts = ["abc", "", "a text of more than sixteen letters", "z"]
    states = [tiny.TABLE[tiny.ids(text)] for text in texts]
    pooled = {"mean": [s.mean(0) for s in states], "cls": [s[0] for s in states], "last": [s[-1] for s in states]}[pooling]
    with Pool(str(model), workers=1) as pool:
        assert np.allclose(pool.embed(texts), [unit(vector) for vector in pooled], atol=1e-6)
        assert np.allclose(pool.embed(["abc"], normalize=False), pooled[:1], atol=1e-6)
        assert json.loads(pool.status())["model"]["max_tokens"] == 16


def test_a_graph_that_pools_is_read_by_the_name_of_its_output(tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "tiny", pooled=True, inputs=("token_type_ids", "position_ids"))
    with Pool(str(model), workers=1) as pool:
        assert np.allclose(pool.embed(["abc"]), [unit(tiny.TABLE[2])], atol=1e-6)


def test_prompts_come_from_the_models_files(tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "tiny", files={"config_sentence_transformers.json": PROMPTS})
    with Pool(str(model), workers=1) as pool:
        assert np.array_equal(pool.embed_query("abc"), pool.embed(["q abc"])[0])
        assert np.array_equal(pool.embed_documents(["abc"]), pool.embed(["abc"]))
        assert not np.array_equal(pool.embed_query("abc"), pool.embed(["abc"])[0])


def test_a_default_prompt_is_applied_to_all_that_names_none(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "q ", "none": ""}, "default_prompt_name": "query"}
    model = tiny.directory(tmp_path / "tiny", files={"config_sentence_transformers.json": prompts})
    with Pool(str(model), workers=1) as pool:
        assert np.array_equal(pool.embed(["abc"]), pool.embed(["abc"], prompt_name="query"))
        assert not np.array_equal(pool.embed(["abc"]), pool.embed(["abc"], prompt_name="none"))


def test_the_fingerprint_changes_with_weights_and_with_use(tmp_path: Path) -> None:
    def of(model: Path, **settings: object) -> str:
        with Pool(str(model), workers=1, **settings) as pool:
            return str(json.loads(pool.status())["model"]["fingerprint"])

    model = tiny.directory(tmp_path / "tiny", external=True)
    first = of(model)
    assert first == of(model)
    assert first != of(model, max_tokens=8)
    assert first != of(model, pooling="cls")
    data = model / "onnx" / "model.onnx_data"
    changed = bytearray(data.read_bytes())
    changed[5] ^= 1
    data.write_bytes(changed)
    assert first != of(model)


def _no_data(model: Path) -> None:
    (model / "onnx" / "model.onnx_data").unlink()


def _cut_data(model: Path) -> None:
    data = model / "onnx" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:100])


def _no_pooling(model: Path) -> None:
    (model / "1_Pooling" / "config.json").unlink()


def _no_limit(model: Path) -> None:
    (model / "sentence_bert_config.json").unlink()


def _cut_graph(model: Path) -> None:
    graph = model / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:200])


def _unknown_input(model: Path) -> None:
    tiny.graph(model / "onnx" / "model.onnx", inputs=("past_key_values",))


def _bad_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("breaks", "names"),
    [
        (_no_data, "model.onnx_data"),
        (_cut_data, "model.onnx"),
        (_no_pooling, "1_Pooling/config.json.*--pooling"),
        (_no_limit, "--max-tokens"),
        (_cut_graph, "model.onnx"),
        (_unknown_input, "past_key_values"),
        (_bad_tokenizer, "tokenizer.json"),
    ],
)
def test_an_incomplete_or_damaged_directory_names_its_file(breaks: object, names: str, tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "tiny", external=True)
    breaks(model)  # type: ignore[operator]
    with pytest.raises(ModelError, match=names):
        Pool(str(model), workers=1).start()
