"""Weights of 4 and 8 bits: packed as ONNX Runtime reads them, as near to the originals as their bits allow, and giving vectors
that are near those of the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedpool.errors import ModelError
from embedpool.models.build.complete import complete, external_files, one_by_one
from embedpool.models.build.family import build
from embedpool.models.build.quantize import BLOCK, MADE, SHRINK, blocks_of_4_bits, quantize
from embedpool.models.build.tail import Tail
from tests.fixtures.random_models import MODELS, feed, rows, write_directory

MODEL = MODELS["bert-mean"]
FLOAT = TensorProto.FLOAT


def _session(graph: Path | bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph if isinstance(graph, bytes) else str(graph), options)


def _unpacked(codes: NDArray[np.uint8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32[K, N] again, one value after the other as the operator's description has it."""
    assert codes.dtype == np.uint8
    assert scales.dtype == np.float32
    columns, blocks, half = codes.shape
    assert (scales.shape, half) == ((columns, blocks), BLOCK // 2)
    values = np.zeros((blocks * BLOCK, columns), np.float32)
    for n, block, i in np.ndindex(columns, blocks, BLOCK):
        code = int(codes[n, block, i // 2]) >> (4 * (i % 2)) & 15
        values[block * BLOCK + i, n] = (code - 8) * scales[n, block]
    return values


def _random(k: int, n: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((k, n)) * 0.1).astype(np.float32)


# ── blocks of 4 bits ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_values_that_4_bits_can_hold_are_packed_by_hand() -> None:
    rising = [*range(-8, 8)] * 2
    falling = [0.25 * value for value in (8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7)] * 2
    codes, scales = blocks_of_4_bits(np.array([rising, falling], np.float32).T)
    pairs = ["10", "32", "54", "76", "98", "ba", "dc", "fe"]  # the first of two is the low half
    assert codes.shape == (2, 1, 16)
    assert [bytes(codes[n, 0]).hex(" ") for n in (0, 1)] == [" ".join(pairs * 2)] * 2
    assert scales.tolist() == [[1.0], [-0.25]]  # the value that is farthest from 0 has the code 0


def test_a_block_is_32_values_of_one_column() -> None:
    weight = np.zeros((96, 2), np.float32)
    weight[32:64, 1] = -8 * 0.5
    codes, scales = blocks_of_4_bits(weight)
    assert codes.shape == (2, 3, 16)
    assert scales.tolist() == [[1.0, 1.0, 1.0], [1.0, 0.5, 1.0]]
    assert [bytes(codes[n, block]).hex() for n in (0, 1) for block in range(3)] == [
        *["88" * 16] * 3,
        *("88" * 16, "00" * 16, "88" * 16),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_unpacked_values_are_the_nearest_of_those_that_a_block_can_have(seed: int) -> None:
    weight = _random(128, 7, seed) * np.float32(10.0**seed)
    codes, scales = blocks_of_4_bits(weight)
    step = np.abs(np.repeat(scales.T, BLOCK, axis=0))
    error = np.abs(_unpacked(codes, scales) - weight)
    # Within half a step, but for what lies beyond the first or the last of the 16 values.
    inside = np.abs(weight) <= 7 * step
    assert (error[inside] <= step[inside] * (0.5 + 1e-5)).all()
    assert inside.mean() > 0.9
    assert (error <= (np.abs(weight) - 7 * step).clip(0) + step * 0.5 + 1e-5 * step).all()


@pytest.mark.parametrize("seed", range(3))
def test_each_block_has_the_step_of_least_error_among_those_that_are_tried(seed: int) -> None:
    weight = np.concatenate([_random(64, 5, seed), np.random.default_rng(seed).laplace(size=(64, 5)).astype(np.float32)])
    codes, scales = blocks_of_4_bits(weight)
    found = np.square(_unpacked(codes, scales) - weight).reshape(-1, BLOCK, 5).sum(axis=1)
    for block, n in np.ndindex(4, 5):
        values = weight[block * BLOCK : (block + 1) * BLOCK, n].astype(np.float64)
        widest = -values[np.abs(values).argmax()] / 8
        errors = []
        for share in SHRINK:
            steps = np.clip(np.rint(values / (widest * share)), -8, 7)
            errors.append(np.square(steps * widest * share - values).sum())
        assert found[block, n] == pytest.approx(min(errors), rel=1e-4)
    assert len(set(np.round(np.abs(scales) * 8 / np.abs(weight.T.reshape(5, 4, BLOCK)).max(axis=2), 3).ravel())) > 1


def test_random_weights_lose_a_tenth_at_the_most() -> None:
    weight = _random(512, 64)
    codes, scales = blocks_of_4_bits(weight)
    lost = np.linalg.norm(_unpacked(codes, scales) - weight) / np.linalg.norm(weight)
    assert 0.05 < lost < 0.1


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 1e15])
def test_very_small_and_very_large_weights_stay_finite(value: float) -> None:
    weight = np.zeros((32, 1), np.float32)
    weight[3] = value
    codes, scales = blocks_of_4_bits(weight)
    found = _unpacked(codes, scales)
    assert np.isfinite(scales).all()
    assert found[3] == pytest.approx(value, rel=0.01, abs=1e-44)
    assert not np.delete(found, 3).any()


@pytest.mark.parametrize(("level", "within"), [(0, 1e-5), (1, 1e-5), (4, 2e-2)])
def test_the_runtime_reads_blocks_as_they_are_meant(level: int, within: float) -> None:
    weight = _random(96, 40)
    codes, scales = blocks_of_4_bits(weight)
    size = {"K": 96, "N": 40, "bits": 4, "block_size": BLOCK, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **size)
    tensors = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")]
    session = _session(_graph([node], tensors, width=96).SerializeToString())
    for length in (1, 2, 5, 33):
        x = np.random.default_rng(length).standard_normal((2, length, 96)).astype(np.float32)
        (found,) = session.run(None, {"x": x})
        wanted = x @ _unpacked(codes, scales)
        assert np.abs(found - wanted).max() <= within * np.abs(wanted).max()


# ── whole graphs ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _graph(nodes: Sequence[onnx.NodeProto], tensors: Sequence[TensorProto], width: int = 64) -> onnx.ModelProto:
    """A graph from float32[batch, tokens, width] x to y."""
    x = helper.make_tensor_value_info("x", FLOAT, ["batch", "tokens", width])
    y = helper.make_tensor_value_info("y", FLOAT, None)
    opsets = [helper.make_opsetid("", 17)]
    if any(node.domain for node in nodes):
        opsets.append(helper.make_opsetid("com.microsoft", 1))
    made = helper.make_model(helper.make_graph(nodes, "tiny", [x], [y], tensors), opset_imports=opsets)
    made.ir_version = 8
    return made


def _smaller(model: onnx.ModelProto, place: Path, precision: str) -> onnx.ModelProto:
    """A graph with its weights in it, stored and quantised."""
    (place / "model.onnx").write_bytes(model.SerializeToString())
    made = quantize(model, place / "model.onnx", place / "smaller.onnx", precision)
    (place / "smaller.onnx").write_bytes(made.SerializeToString())
    return made


class Bert:
    """A random BERT in fp32, q8 and q4, in one directory."""

    def __init__(self, place: Path) -> None:
        write_directory(place, MODEL)
        self.place = place
        graph = build((place / "model.safetensors",), MODEL.config, Tail("mean", (), normalize=True), 1024, place)
        self.models = {"fp32": graph}
        (place / "fp32.onnx").write_bytes(graph.SerializeToString())
        self.before = graph.SerializeToString()
        for precision in MADE:
            made = quantize(graph, place / "fp32.onnx", place / f"{precision}.onnx", precision, SEEN)
            (place / f"{precision}.onnx").write_bytes(made.SerializeToString())
            self.models[precision] = made
        self.sessions = {name: _session(place / f"{name}.onnx") for name in self.models}

    def vectors(self, precision: str, texts: list[list[int]], **padding: Any) -> NDArray[np.float32]:
        (found,) = self.sessions[precision].run(None, feed(texts, **padding))
        return found


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Bert:
    return Bert(tmp_path_factory.mktemp("bert"))


SEEN = rows(MODEL, [7, 30, 60])
TEXTS = rows(MODEL, [1, 2, 3, 5, 8, 13, 21, 34, 55, 80, 200])


@pytest.mark.parametrize(("precision", "least"), [("q8", 0.9998), ("q4", 0.98)])
def test_vectors_of_smaller_weights_are_near_those_of_the_whole_model(bert: Bert, precision: str, least: float) -> None:
    for text in TEXTS:
        whole, small = bert.vectors("fp32", [text])[0], bert.vectors(precision, [text])[0]
        assert np.linalg.norm(small) == pytest.approx(1, abs=1e-5)
        assert least < float(whole @ small) < 1 - 1e-7


@pytest.mark.parametrize(("precision", "op"), [("q8", "MatMulIntegerToFloat"), ("q4", "MatMulNBits")])
def test_every_product_with_a_weight_is_replaced_and_texts_may_run_together(bert: Bert, precision: str, op: str) -> None:
    model = bert.models[precision]
    # Per layer: query, key and value in one, the attention's output, and two of the feed-forward part.
    operators = [node.op_type for node in model.graph.node]
    assert operators.count(op) == 4 * MODEL.config["num_hidden_layers"]
    assert operators.count("MatMul") == 1  # of the mean, which has no weight
    assert not one_by_one(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    assert not complete(copy, bert.place / f"{precision}.onnx", None).one_by_one


@pytest.mark.parametrize("precision", MADE)
def test_vectors_have_the_same_bytes_alone_and_in_any_batch(bert: Bert, precision: str) -> None:
    random = np.random.default_rng(9)
    texts = rows(MODEL, [*range(1, 40), 63, 64, 65, 80])
    alone = [bert.vectors(precision, [text])[0].tobytes() for text in texts]
    for _ in range(40):
        chosen = random.choice(len(texts), random.integers(1, 9), replace=False)
        vectors = bert.vectors(precision, [texts[i] for i in chosen], garbage=random, more=int(random.integers(0, 20)))
        assert [vector.tobytes() for vector in vectors] == [alone[i] for i in chosen]


@pytest.mark.parametrize(("precision", "share"), [("q8", 0.4), ("q4", 0.25)])
def test_smaller_weights_take_less_room(bert: Bert, precision: str, share: float) -> None:
    sizes = {}
    for name in ("fp32", precision):
        places = [{entry.key: entry.value for entry in t.external_data} for t in bert.models[name].graph.initializer]
        inside = sum(len(t.raw_data) for t in bert.models[name].graph.initializer)
        tables = 4 * 64 * (300 + 1024)  # which are looked up and not multiplied
        sizes[name] = inside + sum(int(place.get("length", 0)) for place in places) - tables
    assert sizes[precision] < share * sizes["fp32"]


@pytest.mark.parametrize("precision", MADE)
def test_the_weights_of_what_is_made_lie_beside_it(bert: Bert, precision: str) -> None:
    files = external_files(bert.models[precision], bert.place / f"{precision}.onnx")
    assert files
    assert all(file.parent == bert.place for file in files)


def test_the_whole_model_is_left_as_it_was(bert: Bert) -> None:
    assert bert.models["fp32"].SerializeToString() == bert.before


def test_a_weight_that_two_products_share_is_stored_once_and_multiplies_in_both(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(_random(64, 64), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    made = _smaller(_graph(nodes, [weight]), tmp_path, "q4")
    dequantized = _unpacked(*blocks_of_4_bits(numpy_helper.to_array(weight)))
    x = np.random.default_rng(1).standard_normal((1, 3, 64)).astype(np.float32)
    (found,) = _session(tmp_path / "smaller.onnx").run(None, {"x": x})
    wanted = x @ dequantized @ dequantized
    assert np.abs(found - wanted).max() <= 0.03 * np.abs(wanted).max()
    names = [tensor.name for tensor in made.graph.initializer]
    assert len(names) == len(set(names)) == 2


@pytest.mark.parametrize("place", ["beside", "in a branch"])
def test_a_weight_that_is_also_used_otherwise_is_kept_as_well(tmp_path: Path, place: str) -> None:
    weight = numpy_helper.from_array(_random(64, 64), "w")
    add = helper.make_node("Add", ["h", "w"], ["z"])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), add, helper.make_node("Identity", ["z"], ["y"])]
    tensors = [weight, numpy_helper.from_array(np.array(True), "yes")]
    if place == "in a branch":
        branch = helper.make_graph([add], "branch", [], [helper.make_tensor_value_info("z", FLOAT, None)])
        nodes[1] = helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch)
    _smaller(_graph(nodes, tensors), tmp_path, "q4")
    x = np.random.default_rng(1).standard_normal((1, 64, 64)).astype(np.float32)
    (found,) = _session(tmp_path / "smaller.onnx").run(None, {"x": x})
    values = numpy_helper.to_array(weight)
    wanted = x @ _unpacked(*blocks_of_4_bits(values)) + values
    assert np.abs(found - wanted).max() <= 0.02 * np.abs(wanted).max()


def test_products_that_do_not_fit_blocks_of_4_bits_stay_as_they_are(tmp_path: Path) -> None:
    tensors = [numpy_helper.from_array(_random(64, 40), "a"), numpy_helper.from_array(_random(40, 8), "b")]
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    made = _smaller(_graph(nodes, tensors), tmp_path, "q4")
    assert [node.op_type for node in made.graph.node] == ["MatMulNBits", "MatMul"]
    x = np.random.default_rng(1).standard_normal((1, 3, 64)).astype(np.float32)
    (found,) = _session(tmp_path / "smaller.onnx").run(None, {"x": x})
    wanted = x @ _unpacked(*blocks_of_4_bits(_random(64, 40))) @ _random(40, 8)
    assert np.abs(found - wanted).max() <= 0.02 * np.abs(wanted).max()


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", MADE)
@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["x", "t"], ["y"])],
    ],
    ids=["no product", "no constant"],
)
def test_a_graph_without_a_product_with_a_weight_is_refused(
    tmp_path: Path, precision: str, nodes: list[onnx.NodeProto]
) -> None:
    model = _graph(nodes, [numpy_helper.from_array(_random(1, 64), "w")])
    with pytest.raises(ModelError, match=f"quantised to {precision}"):
        _smaller(model, tmp_path, precision)


@pytest.mark.parametrize("precision", MADE)
def test_a_graph_whose_weights_are_missing_is_refused(bert: Bert, tmp_path: Path, precision: str) -> None:
    (tmp_path / "fp32.onnx").write_bytes(bert.before)
    with pytest.raises(ModelError):
        quantize(bert.models["fp32"], tmp_path / "fp32.onnx", tmp_path / "smaller.onnx", precision)


@pytest.mark.parametrize("precision", MADE)
def test_a_place_that_cannot_be_written_is_an_error_of_the_model(bert: Bert, tmp_path: Path, precision: str) -> None:
    with pytest.raises(ModelError, match=f"nowhere|quantised to {precision}"):
        quantize(bert.models["fp32"], bert.place / "fp32.onnx", tmp_path / "nowhere" / "smaller.onnx", precision)
