"""A graph that is built slightly wrongly gives vectors that are slightly wrong. So every family is compared with what
transformers computes from the same weights (stored; random_models.py makes the weights, make_build_reference.py the vectors),
and what cannot be built rightly must be an error that says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from embedpool.errors import ModelError
from embedpool.models.build.complete import complete, external_files
from embedpool.models.build.family import build
from embedpool.models.build.tail import Dense, Tail, dense_of
from embedpool.models.build.writer import ALIGN, DATA
from embedpool.models.directory import weight_files
from tests.fixtures.random_models import (
    MODELS,
    RandomModel,
    dense_weights,
    encoded,
    feed,
    rows,
    weights,
    write_directory,
    write_weights,
)

REFERENCE = Path(__file__).parents[1] / "fixtures" / "build_reference.npz"
CLOSE = 1e-5  # 3e-7 is what float32 differs by; a window that is wrong by one token differs by more than 1e-4
SMALL = MODELS["bert-mean"].of(num_hidden_layers=1)
OF = {
    "bert": SMALL,
    "roberta": MODELS["roberta"].of(num_hidden_layers=1),
    "gemma": MODELS["gemma-causal"],
    "qwen": MODELS["qwen"].of(num_hidden_layers=1),
}
RAW = Tail("mean", (), normalize=False)


@dataclass(frozen=True, slots=True)
class Built:
    graph: Path
    session: onnxruntime.InferenceSession

    def vectors(self, texts: list[list[int]], garbage: np.random.Generator | None = None, more: int = 0) -> NDArray[np.float32]:
        (found,) = self.session.run(None, feed(texts, garbage, more))
        assert found.dtype == np.float32
        return found

    def alone(self, texts: list[list[int]]) -> NDArray[np.float32]:
        return np.concatenate([self.vectors([text]) for text in texts])

    @property
    def data(self) -> bytes:
        return (self.graph.parent / DATA).read_bytes()


def make(
    directory: Path, model: RandomModel, tail: Tail | None = None, max_tokens: int = 1024, files: tuple[Path, ...] = ()
) -> Built:
    """The graph of a directory's weights, in a session of one thread."""
    folders = sorted(directory.glob("*_Dense"))
    dense = tuple(dense_of(json.loads((folder / "config.json").read_text()), folder) for folder in folders)
    out = directory / "out"
    out.mkdir(exist_ok=True)
    graph = build(
        files or (directory / "model.safetensors",),
        json.loads((directory / "config.json").read_text()),
        tail or Tail(model.pooling, dense, normalize=True),
        max_tokens,
        out,
    )
    (out / "model.onnx").write_bytes(graph.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return Built(out / "model.onnx", onnxruntime.InferenceSession(str(out / "model.onnx"), options))


Make = Callable[[str], Built]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Each of MODELS, built once for this file."""
    made: dict[str, Built] = {}

    def get(name: str) -> Built:
        if name not in made:
            made[name] = make(write_directory(tmp_path_factory.mktemp(name), MODELS[name]), MODELS[name])
        return made[name]

    return get


@pytest.fixture(scope="module")
def reference() -> Mapping[str, NDArray[Any]]:
    with np.load(REFERENCE) as stored:
        return dict(stored)


def refused(directory: Path, *words: str, tail: Tail = RAW, **config: Any) -> None:
    """Building the directory's weights is refused with all these words; `config` are changes of its config.json."""
    known = json.loads((directory / "config.json").read_text())
    with pytest.raises(ModelError) as caught:
        build((directory / "model.safetensors",), known | config, tail, 1024, directory)
    for word in words:
        assert word in caught.value.message


# ── the same as transformers ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", MODELS)
def test_the_random_weights_are_those_that_the_reference_was_made_of(
    tmp_path: Path, name: str, reference: Mapping[str, NDArray[Any]]
) -> None:
    write_directory(tmp_path, MODELS[name])
    digest = sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert digest == json.loads(str(reference["weights"]))[name], "run tests/fixtures/make_build_reference.py"


@pytest.mark.parametrize("name", MODELS)
def test_a_text_alone_gives_the_vector_of_transformers(
    name: str, built: Make, reference: Mapping[str, NDArray[np.float32]]
) -> None:
    vectors = built(name).alone(rows(MODELS[name]))
    assert vectors.shape == reference[name].shape
    assert np.abs(vectors - reference[name]).max() <= CLOSE
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_texts_in_one_padded_batch_give_the_vectors_of_transformers_whatever_the_padding_holds(
    name: str, built: Make, reference: Mapping[str, NDArray[np.float32]]
) -> None:
    texts = rows(MODELS[name])
    vectors = built(name).vectors(texts, garbage=np.random.default_rng(0), more=3)
    assert np.abs(vectors - reference[name]).max() <= CLOSE
    assert vectors.tobytes() == built(name).alone(texts).tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_a_vector_has_the_same_bytes_alone_and_in_any_batch(name: str, built: Make) -> None:
    random = np.random.default_rng(17)
    lengths = [*range(1, 14), *random.integers(14, 81, 12).tolist(), 80]
    texts = rows(MODELS[name], lengths)
    alone = built(name).alone(texts)
    for _ in range(12):
        chosen = random.choice(len(texts), random.integers(1, 9), replace=False)
        vectors = built(name).vectors([texts[i] for i in chosen], garbage=random, more=int(random.integers(0, 20)))
        different = [lengths[i] for i, vector in zip(chosen, vectors, strict=True) if vector.tobytes() != alone[i].tobytes()]
        assert not different, f"texts of {different} tokens, among {[lengths[i] for i in chosen]}"


def test_a_graph_has_two_inputs_and_one_output_and_its_data_beside_it(built: Make) -> None:
    graph = built("gemma").graph
    session = built("gemma").session
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("sentence_embedding", ["batch", 96])]
    model = onnx.load_model(str(graph), load_external_data=False)
    assert external_files(model, graph) == [graph.parent / DATA]
    offsets = [int(entry.value) for t in model.graph.initializer for entry in t.external_data if entry.key == "offset"]
    assert len(offsets) > 50
    assert [offset for offset in offsets if offset % ALIGN] == []
    # What was built here needs nothing more, and its texts may run together.
    made = complete(model, graph, None)
    assert (made.output, made.one_by_one) == ("float32", False)


# ── weights in other forms ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "prefix", "heads"),
    [
        ("bert-mean", "bert.", ["cls.predictions.bias", "cls.seq_relationship.weight", "classifier.weight"]),
        ("roberta", "roberta.", ["lm_head.dense.weight", "classifier.dense.bias", "lm_head.bias"]),
        ("gemma", "model.", ["lm_head.weight"]),
        ("qwen", "model.", ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]),
        ("bert-mean", "0.auto_model.", []),
    ],
)
def test_weights_saved_from_a_model_with_a_head_are_the_same_model(
    tmp_path: Path, name: str, prefix: str, heads: list[str], built: Make
) -> None:
    model = MODELS[name]
    named = {prefix + tensor: values for tensor, values in weights(model).items()}
    write_directory(tmp_path, model)
    write_weights(tmp_path / "model.safetensors", named | dict.fromkeys(heads, np.zeros(3, np.float32)))
    assert make(tmp_path, model).data == built(name).data


def test_position_ids_that_old_versions_saved_among_the_weights_are_no_weights(tmp_path: Path, built: Make) -> None:
    write_directory(tmp_path, MODELS["bert-mean"])
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    place = [len(data), len(data) + 8 * 1024]
    header["embeddings.position_ids"] = {"dtype": "I64", "shape": [1, 1024], "data_offsets": place}
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + data + np.arange(1024).tobytes()
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert make(tmp_path, MODELS["bert-mean"]).data == built("bert-mean").data


@pytest.mark.parametrize("name", ["bert-mean", "gemma", "qwen-bf16"])
def test_weights_in_several_files_are_the_same_model(tmp_path: Path, name: str, built: Make) -> None:
    model = MODELS[name]
    write_directory(tmp_path, model)
    (tmp_path / "model.safetensors").unlink()
    named, places = weights(model), {}
    for i in range(3):
        part = {tensor: named[tensor] for tensor in sorted(named)[i::3]}
        file = f"model-{i + 1:05}-of-00003.safetensors"
        write_weights(tmp_path / file, part, model.dtype)
        places |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    files = weight_files(tmp_path)
    assert len(files) == 3
    assert make(tmp_path, model, files=files).data == built(name).data


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_weights_of_16_bits_are_the_model_of_their_values(tmp_path: Path, dtype: str) -> None:
    model = replace(SMALL, dtype=dtype)
    short = make(write_directory(tmp_path / "short", model), model)
    named = {tensor: _widened(encoded(values, dtype), dtype, values.shape) for tensor, values in weights(model).items()}
    write_weights(write_directory(tmp_path / "wide", model) / "model.safetensors", named)
    assert make(tmp_path / "wide", model).data == short.data


def _widened(raw: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32).reshape(shape)
    zeros = np.zeros((len(raw) // 2, 2), "<u2")
    zeros[:, 1] = np.frombuffer(raw, "<u2")
    return zeros.view("<f4").reshape(shape)


ROPE_NEW = {
    "rope_theta": None,
    "rope_local_base_freq": None,
    "rope_parameters": {
        "full_attention": {"rope_theta": 700000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 9000.0, "rope_type": "default"},
    },
}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("gemma", ROPE_NEW),
        ("gemma", {"layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]}),
        ("gemma", {"_sliding_window_pattern": None, "sliding_window_pattern": 6}),
        ("gemma", {"_sliding_window_pattern": None, "hidden_activation": None}),
        ("gemma", {"sliding_window": 513}),  # halved, as transformers does
        ("qwen", {"rope_theta": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
        ("qwen", {"hidden_act": None, "rope_scaling": {"rope_type": "default"}}),
        ("qwen-sliding", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2, "max_window_layers": 28}),
        ("bert-bf16", {"hidden_act": "gelu_pytorch_tanh"}),
    ],
    ids=str,
)
def test_a_configuration_spelled_otherwise_is_the_same_model(
    tmp_path: Path, name: str, changed: dict[str, Any], built: Make
) -> None:
    model = MODELS[name].of(**changed)
    made = make(write_directory(tmp_path, model), model)
    texts = rows(model, (300,))
    assert made.data == built(name).data
    assert made.vectors(texts).tobytes() == built(name).vectors(texts).tobytes()


def test_no_window_or_window_of_other_layers_is_another_model(tmp_path: Path, built: Make) -> None:
    texts = rows(MODELS["qwen-sliding"], (200,))
    known = built("qwen-sliding").vectors(texts)
    for i, changed in enumerate(({"use_sliding_window": False}, {"max_window_layers": 3}, {"sliding_window": 91})):
        model = MODELS["qwen-sliding"].of(**changed)
        made = make(write_directory(tmp_path / str(i), model), model)
        assert np.abs(made.vectors(texts) - known).max() > 10 * CLOSE


@pytest.mark.parametrize("name", ["gemma", "qwen"])
def test_angles_are_kept_for_as_many_tokens_as_are_asked_for(tmp_path: Path, name: str, built: Make) -> None:
    made = make(write_directory(tmp_path, MODELS[name]), MODELS[name], max_tokens=64)
    texts = rows(MODELS[name], (64, 3))
    assert made.vectors(texts).tobytes() == built(name).vectors(texts).tobytes()
    assert len(made.data) < len(built(name).data)
    assert make(tmp_path, MODELS[name], max_tokens=5000).data == built(name).data  # no more than the model has


@pytest.mark.parametrize("name", ["bert-mean", "roberta", "gemma", "qwen"])
def test_a_text_longer_than_the_positions_is_an_error_and_no_vector(name: str, built: Make) -> None:
    longest = MODELS[name].config["max_position_embeddings"] - (2 if name == "roberta" else 0)
    assert built(name).vectors(rows(MODELS[name], (longest,))).shape[0] == 1
    with pytest.raises(Exception, match=r"Add|Rotary|position"):
        built(name).vectors(rows(MODELS[name], (longest + 1,)))


# ── behind the last layer ────────────────────────────────────────────────────────────────────────────────────────────


def _dense(folder: Path, activation: str, bias: bool, width: int = 64) -> tuple[Dense, NDArray[np.float32], Any]:
    random = np.random.default_rng(5)
    matrix = random.standard_normal((40, width)).astype(np.float32)
    shift = random.standard_normal(40).astype(np.float32) if bias else np.float32(0)
    folder.mkdir(parents=True)
    write_weights(folder / "model.safetensors", {"linear.weight": matrix} | ({"linear.bias": shift} if bias else {}))
    return dense_of({"activation_function": activation}, folder), matrix, shift


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("torch.nn.modules.activation.Tanh", np.tanh),
        ("torch.nn.modules.activation.ReLU", lambda x: np.maximum(x, 0)),
        ("torch.nn.modules.activation.Sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("torch.nn.modules.activation.GELU", lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2),
        ("torch.nn.modules.linear.Identity", lambda x: x),
        ("", lambda x: x),
    ],
)
def test_a_dense_layer_with_its_activation(tmp_path: Path, activation: str, function: Callable[[Any], Any], bias: bool) -> None:
    write_directory(tmp_path, SMALL)
    dense, matrix, shift = _dense(tmp_path / "layer", activation, bias)
    texts = rows(SMALL, (5, 9))
    pooled = make(tmp_path, SMALL, RAW).vectors(texts).astype(np.float64)
    found = make(tmp_path, SMALL, Tail("mean", (dense,), normalize=False)).vectors(texts)
    wanted = function(pooled @ matrix.T + shift)
    assert found.shape == (2, 40)
    assert np.abs(found - wanted).max() <= 1e-5
    assert np.abs(wanted).max() > 0.5


def test_dense_layers_follow_each_other_in_order(tmp_path: Path) -> None:
    model = replace(SMALL, dense=(192, 48))
    write_directory(tmp_path, model)
    first, second = dense_weights(model)
    texts = rows(model, (4, 30))
    wanted = make(tmp_path, model, RAW).vectors(texts) @ first.T @ second.T
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.abs(make(tmp_path, model).vectors(texts) - wanted).max() <= 1e-6


def test_vectors_have_unit_length_only_where_the_model_says_so(tmp_path: Path) -> None:
    write_directory(tmp_path, SMALL)
    texts = rows(SMALL, (5, 9))
    raw = make(tmp_path, SMALL, RAW).vectors(texts)
    unit = make(tmp_path, SMALL, replace(RAW, normalize=True)).vectors(texts)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    assert np.abs(raw / lengths - unit).max() <= 1e-6


def test_a_dense_layer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_directory(tmp_path, SMALL)
    dense, _, _ = _dense(tmp_path / "narrow", "", bias=False, width=48)
    refused(tmp_path, str(tmp_path / "narrow"), "48", "64", tail=Tail("mean", (dense,), normalize=True))
    twice, _, _ = _dense(tmp_path / "fits", "", bias=False)
    refused(tmp_path, str(tmp_path / "fits"), "64", "40", tail=Tail("mean", (twice, twice), normalize=True))


def test_a_dense_layer_with_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    write_directory(tmp_path, SMALL)
    dense, _, _ = _dense(tmp_path / "layer", "torch.nn.modules.activation.Hardswish", bias=False)
    refused(tmp_path, "Hardswish", str(tmp_path / "layer"), tail=Tail("mean", (dense,), normalize=True))


def test_a_dense_layer_without_weights_that_can_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        dense_of({}, tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="safetensors"):
        dense_of({}, tmp_path)
    write_directory(tmp_path / "body", SMALL)
    write_weights(tmp_path / "model.safetensors", {"weight": np.zeros((4, 64), np.float32)})
    refused(tmp_path / "body", "linear.weight", tail=Tail("mean", (dense_of({}, tmp_path),), normalize=True))


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"model_type": "modernbert", "architectures": ["ModernBertModel"]}, ["ModernBertModel", "modernbert"]),
        ({"model_type": "qwen2", "architectures": None}, ["qwen2"]),
        ({"model_type": None, "architectures": ["T5EncoderModel"]}, ["T5EncoderModel"]),
        ({"model_type": "", "architectures": []}, ["no architecture"]),
    ],
)
def test_an_unknown_architecture_is_named_with_the_way_to_export_it(
    tmp_path: Path, config: dict[str, Any], names: list[str]
) -> None:
    write_directory(tmp_path, SMALL)
    refused(tmp_path, *names, str(tmp_path), "optimum-cli export onnx", "xlm-roberta", "gemma3_text", **config)


@pytest.mark.parametrize("kind", OF)
def test_a_missing_weight_is_named_whichever_it_is(tmp_path: Path, kind: str) -> None:
    write_directory(tmp_path, OF[kind])
    named = weights(OF[kind])
    for missing in named:
        if missing.startswith("pooler."):
            continue
        write_weights(tmp_path / "model.safetensors", {name: values for name, values in named.items() if name != missing})
        refused(tmp_path, str(tmp_path / "model.safetensors"), missing)


@pytest.mark.parametrize(("name", "layers"), [("bert-mean", 2), ("roberta", 2), ("gemma", 6), ("gemma-causal", 2), ("qwen", 3)])
def test_weights_of_more_layers_than_the_configuration_has_are_refused(tmp_path: Path, name: str, layers: int) -> None:
    model = MODELS[name]
    write_directory(tmp_path, model)
    kinds = {"layer_types": model.config["layer_types"][:layers]} if "layer_types" in model.config else {}
    refused(tmp_path, str(tmp_path), f"layer{'' if 'bert' in name else 's'}.{layers}.", num_hidden_layers=layers, **kinds)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("bert", "encoder.layer.0.attention.self.distance_embedding.weight"),
        ("bert", "encoder.layer.0.crossattention.self.query.weight"),
        ("qwen", "layers.0.self_attn.q_proj.bias"),
        ("gemma", "layers.0.self_attn.sinks"),
    ],
    ids=str,
)
def test_a_weight_that_the_architecture_does_not_have_is_refused(tmp_path: Path, kind: str, extra: str) -> None:
    write_directory(tmp_path, OF[kind])
    write_weights(tmp_path / "model.safetensors", weights(OF[kind]) | {extra: np.zeros(3, np.float32)})
    refused(tmp_path, extra, "architecture")


@pytest.mark.parametrize(
    ("kind", "config", "word"),
    [
        ("bert", {"hidden_act": "gelu_fast"}, "gelu_fast"),
        ("bert", {"hidden_act": "silu"}, "silu"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("qwen", {"hidden_act": "gelu"}, "gelu"),
        ("qwen", {"attention_bias": True}, "attention_bias"),
        ("qwen", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "linear"),
        ("qwen", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ("qwen", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6}}, "dynamic"),
        ("qwen", {"layer_types": ["chunked_attention"]}, "kinds chunked_attention"),
        ("qwen", {"layer_types": ["full_attention"] * 2}, "contradicts itself"),
        ("gemma", {"hidden_activation": "silu"}, "silu"),
        ("gemma", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, "linear"),
        ("gemma", {"rope_parameters": {"sliding_attention": {"rope_type": "llama3"}}}, "llama3"),
    ],
    ids=str,
)
def test_what_would_be_built_wrongly_is_refused_by_name(tmp_path: Path, kind: str, config: dict[str, Any], word: str) -> None:
    refused(write_directory(tmp_path, OF[kind]), word, **config)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("bert", {"num_hidden_layers": None}),
        ("bert", {"num_attention_heads": "four"}),
        ("bert", {"num_attention_heads": []}),
        ("bert", {"layer_norm_eps": None}),
        ("bert", {"hidden_size": None}),
        ("roberta", {"pad_token_id": None}),
        ("qwen", {"num_attention_heads": 0, "head_dim": None}),
        ("qwen", {"max_position_embeddings": None}),
        ("qwen", {"rope_theta": "large"}),
        ("qwen", {"num_hidden_layers": float("inf")}),
        ("qwen", {"rope_scaling": "linear"}),
        ("qwen", {"rope_parameters": [1]}),
        ("qwen", {"layer_types": 1}),
        ("gemma", {"layer_types": None, "_sliding_window_pattern": "six"}),
        ("gemma", {"query_pre_attn_scalar": -24}),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_sense_is_an_error_of_the_model(
    tmp_path: Path, kind: str, config: dict[str, Any]
) -> None:
    refused(write_directory(tmp_path, OF[kind]), str(tmp_path), **config)


@pytest.mark.parametrize("name", ["gemma", "gemma-causal", "qwen-sliding"])
def test_sliding_layers_without_a_window_are_refused(tmp_path: Path, name: str) -> None:
    kinds = ["sliding_attention"] * MODELS[name].config["num_hidden_layers"]
    refused(write_directory(tmp_path, MODELS[name]), "sliding_window", sliding_window=None, layer_types=kinds)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_weights_that_were_cut_off_are_refused(tmp_path: Path, share: float) -> None:
    write_directory(tmp_path, SMALL)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path, str(tmp_path / "model.safetensors"), "downloaded whole")


def test_a_place_that_cannot_be_written_is_an_error_of_the_model(tmp_path: Path) -> None:
    write_directory(tmp_path, SMALL)
    for target in (tmp_path / "nowhere", tmp_path / "config.json"):
        with pytest.raises(ModelError, match="cannot be written"):
            build((tmp_path / "model.safetensors",), SMALL.config, RAW, 1024, target)
