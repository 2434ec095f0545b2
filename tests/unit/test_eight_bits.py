"""Products in 8 bits: what is computed with whole numbers is what real ones would give, but for half a step of rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedpool.models.artifact import adds_signed
from embedpool.models.build.eight_bits import columns_of_8_bits, eight_bits, factors_of
from embedpool.models.build.family import build
from embedpool.models.build.statistics import MEASURED, measured
from embedpool.models.build.tail import Tail
from embedpool.models.build.writer import IDS, MASK
from embedpool.models.cache import Machine
from tests.fixtures.random_models import MODELS, feed, rows, write_directory
from tests.unit.test_quantize import _session

TEXTS = rows(MODELS["bert-mean"], [7, 30, 60])


def _model(nodes: Sequence[onnx.NodeProto], opset: int = 20, **weights: Any) -> onnx.ModelProto:
    """From float32[n, tokens, 64] x to y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "tokens", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(helper.make_graph(nodes, "tiny", [x], [y], tensors), opset_imports=opsets, ir_version=8)


def _random(*shape: int, seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _embedding(nodes: Sequence[onnx.NodeProto], outlier: float = 1.0, **weights: Any) -> onnx.ModelProto:
    """From token ids through a table to x, and from there to y: what can be measured on texts. One channel is larger."""
    table = _random(300, 64) * np.where(np.arange(64) == 5, outlier, 1.0)
    made = _model([helper.make_node("Gather", ["table", IDS], ["x"]), *nodes], table=table.astype(np.float32), **weights)
    del made.graph.input[:]
    for name in (IDS, MASK):
        made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "tokens"]))
    return made


def _made(model: onnx.ModelProto, place: Path, texts: Sequence[Sequence[int]] = (), *, signed: bool = True) -> onnx.ModelProto:
    (place / "whole.onnx").write_bytes(model.SerializeToString())
    smaller = eight_bits(model, place / "whole.onnx", place / f"{signed}.onnx", texts, signed=signed)
    (place / f"{signed}.onnx").write_bytes(smaller.SerializeToString())
    return smaller


def _of(graph: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = _session(graph).run(None, {"x": x})[0]
    return found


def _weight(k: int = 64, n: int = 48) -> NDArray[np.float32]:
    return _random(k, n, seed=4)


PRODUCT = helper.make_node("MatMul", ["x", "w"], ["y"])


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 20])
def test_a_product_is_what_whole_numbers_by_hand_give(tmp_path: Path, opset: int) -> None:
    w = _weight()
    _made(_model([PRODUCT], opset, w=w), tmp_path)
    x = (_random(2, 5, 64) * np.array([1, 1e-3, 1e3, 0, 7])[:, None]).astype(np.float32)
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-12) / 127
    codes, columns = columns_of_8_bits(w)
    wanted = np.rint(x / scale) @ codes.astype(np.float64) * scale * columns
    assert np.allclose(_of(tmp_path / "True.onnx", x), wanted, rtol=1e-4, atol=1e-6)
    assert np.abs(wanted - x @ w).max(axis=-1).max() < 0.05 * np.abs(x @ w).max()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.integers(1, 9))
def test_a_weight_is_off_by_half_a_step_at_most(column: list[float], n: int) -> None:
    weight = np.array(column, np.float32)[:, None] * np.arange(1, n + 1, dtype=np.float32)
    codes, scales = columns_of_8_bits(weight)
    assert codes.dtype == np.int8 and codes.min() >= -127
    assert (np.abs(codes * scales - weight) <= 0.5001 * scales + 1e-30).all()


@pytest.mark.parametrize("texts", [(), TEXTS], ids=["not measured", "measured"])
def test_weights_with_and_without_a_sign_give_the_same_bytes(tmp_path: Path, texts: Sequence[Sequence[int]]) -> None:
    relu = helper.make_node("Relu", ["x"], ["r"])
    model = _embedding([relu, helper.make_node("MatMul", ["r", "w"], ["y"])], w=_weight())
    given = {IDS: np.array([[1, 2, 3, 250]]), MASK: np.ones((1, 4), np.int64)}
    found = []
    for signed in (True, False):
        smaller = _made(model, tmp_path, texts, signed=signed)
        types = {t.data_type for t in smaller.graph.initializer if len(t.dims) == 2 and "table" not in t.name}
        assert types == {TensorProto.INT8 if signed else TensorProto.UINT8}
        found.append(_session(tmp_path / f"{signed}.onnx").run(None, given)[0].tobytes())
    assert found[0] == found[1]


def test_which_processors_add_products_of_both_signs_without_losing_any() -> None:
    def machine(arch: str, *features: str) -> Machine:
        return Machine(arch=arch, features=features, runtime="1")

    assert adds_signed(machine("x86_64", "avx2", "avx_vnni"))
    assert adds_signed(machine("x86_64", "avx512f", "avx512_vnni"))
    assert not adds_signed(machine("x86_64", "avx2", "avx512f"))
    assert adds_signed(machine("aarch64", "asimd"))


def _error(model: onnx.ModelProto, place: Path, texts: Sequence[Sequence[int]]) -> float:
    """Of the quantised model's values, as a share of the whole one's."""
    _made(model, place, texts)
    given = {IDS: np.array([[9, 80, 120, 200, 299]]), MASK: np.ones((1, 5), np.int64)}
    whole, small = (_session(place / name).run(None, given)[0] for name in ("whole.onnx", "True.onnx"))
    return float(np.linalg.norm(whole - small) / np.linalg.norm(whole))


def test_a_channel_that_is_large_in_every_text_costs_the_others_less_when_it_is_known(tmp_path: Path) -> None:
    model = _embedding([PRODUCT], outlier=20.0, w=_weight())
    assert _error(model, tmp_path, TEXTS) < 0.6 * _error(model, tmp_path, ())


@pytest.mark.parametrize("far", [0.0, 200.0], ids=["beside zero", "far from it"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_on_one_side_of_zero_get_twice_the_steps(tmp_path: Path, sign: float, far: float) -> None:
    nodes = [helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Add", ["a", "far"], ["f"])]
    nodes += [helper.make_node("Mul", ["f", "sign"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])]
    diagonal = np.eye(64, dtype=np.float32)  # whose weights have no error of their own
    model = _embedding(nodes, far=np.float32(far), sign=np.float32(sign), w=diagonal)
    assert _error(model, tmp_path, TEXTS) < 0.6 * _error(model, tmp_path, ())


def test_factors_balance_values_and_weights_and_change_nothing_on_the_whole() -> None:
    factors = factors_of(np.array([4.0, 1.0, 0.0], np.float32), np.array([1.0, 4.0, 0.0], np.float32))
    assert np.isclose(np.prod(factors, dtype=np.float64), 1.0)
    assert np.isclose(factors[0] / factors[1], 4.0)
    assert np.isfinite(factors).all() and (factors > 0).all()


def _normed(readers: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    norm = helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["h"], axis=-1)
    gain, shift = np.abs(_random(64, seed=5)) + np.float32(0.5), _random(64, seed=6)
    return _embedding([norm, *readers], gain=gain, shift=shift, w=_weight(64, 64))


@pytest.mark.parametrize("shared", [False, True])
def test_factors_go_into_the_norm_unless_something_else_reads_it(tmp_path: Path, shared: bool) -> None:
    out = [helper.make_node("MatMul", ["h", "w"], ["z" if shared else "y"])]
    out += [helper.make_node("Add", ["z", "h"], ["y"])] if shared else []
    model = _normed(out)
    assert _error(model, tmp_path, TEXTS) < 0.01
    made = onnx.load(tmp_path / "True.onnx", load_external_data=False)
    dividers = [node for node in made.graph.node if any(name.endswith(".factors") for name in node.input)]
    assert len(dividers) == shared


def test_a_weight_that_two_values_are_multiplied_with_has_the_factors_of_each(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    assert _error(_embedding(nodes, w=_weight(64, 64)), tmp_path, TEXTS) < 0.02


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_architecture_keeps_its_vectors_and_their_bytes_in_any_batch(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    write_directory(tmp_path, model)
    tail = Tail("mean", (), normalize=True)
    whole = build((tmp_path / "model.safetensors",), model.config, tail, 1024, tmp_path)
    _made(whole, tmp_path, rows(model, [7, 30, 60]))
    sessions = [_session(tmp_path / each) for each in ("whole.onnx", "True.onnx")]
    texts = rows(model, [2, 9, 33, 64])
    vectors, small = (np.concatenate([session.run(None, feed([text]))[0] for text in texts]) for session in sessions)
    assert (vectors * small).sum(axis=1).min() > 0.99  # random weights carry every error on to the end
    together = sessions[1].run(None, feed(texts, more=5))[0]
    assert together.tobytes() == small.tobytes()


def test_what_is_measured_is_each_channels_root_mean_square_and_each_tokens_own_range(tmp_path: Path) -> None:
    model = _embedding([helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])], w=_weight())
    (tmp_path / "whole.onnx").write_bytes(model.SerializeToString())
    found = measured(model, tmp_path / "whole.onnx", ["x", "r"], [[1, 2], [3]])
    (table,) = (numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "table")
    assert np.allclose(found["x"].size, np.sqrt((table[1:4] ** 2).mean(axis=0)), rtol=1e-5)
    assert found["r"].share_of_range == pytest.approx(0.5)
    assert 0.5 < found["x"].share_of_range <= 1.0
    assert not (tmp_path / MEASURED).exists()
