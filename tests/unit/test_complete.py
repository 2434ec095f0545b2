"""Exports differ in what they ask for, in what they give and in which order. Every form is made here as a graph of a few nodes
whose vectors numpy computes too; what is not known must be refused by name, and never be served by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedpool.errors import ModelError
from embedpool.models.build.complete import Completed, complete, external_files, has_float16, one_by_one, precision, read
from embedpool.models.build.tail import Dense, Tail
from tests.fixtures.random_models import feed, write_weights
from tests.fixtures.tiny import DIM, TABLE
from tests.fixtures.tiny import graph as tiny_graph

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
PATH = Path("/models/tiny/model.onnx")
IDS, MASK = ("input_ids", INT64), ("attention_mask", INT64)
LOOK_UP = helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])
TEXTS = [[4, 9, 17, 5, 2], [7], [11, 3, 29]]
MEAN = Tail("mean", (), normalize=False)
IR = {11: 6, 12: 7, 13: 7, 17: 8, 18: 8, 21: 10}  # the file version of the release that brought the operators

Value = tuple[str, int]  # name and element type; [batch, tokens] as an input, and any shape as an output


def _model(
    nodes: Sequence[onnx.NodeProto] = (LOOK_UP,),
    inputs: Sequence[Value | onnx.ValueInfoProto] = (IDS, MASK),
    outputs: Sequence[Value] = (("last_hidden_state", FLOAT),),
    constants: Sequence[TensorProto] = (),
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    asked = [
        helper.make_tensor_value_info(*value, ["batch", "tokens"]) if isinstance(value, tuple) else value for value in inputs
    ]
    given = [helper.make_tensor_value_info(*value, None) for value in outputs]
    tensors = [numpy_helper.from_array(TABLE, "table"), *constants]
    domains = sorted({part.domain for part in (*nodes, *functions)} - {""})
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    made = helper.make_model(helper.make_graph(nodes, "tiny", asked, given, tensors), opset_imports=opsets, functions=functions)
    made.ir_version = IR[opset]
    return made


def _constant(name: str, values: Any, dtype: Any = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def _feed(texts: list[list[int]] = TEXTS, **padding: Any) -> dict[str, NDArray[np.int64]]:
    made = feed(texts, **padding)
    return made | {"input_ids": made["input_ids"] % len(TABLE)}  # garbage is of the table as well


def _vectors(made: Completed, texts: list[list[int]] = TEXTS, **padding: Any) -> NDArray[Any]:
    """What the completed graph gives. It has the two inputs and the one output that a worker knows, and is valid."""
    initialized = {tensor.name for tensor in made.model.graph.initializer}
    asked = [value for value in made.model.graph.input if value.name not in initialized]
    assert [(value.name, value.type.tensor_type.elem_type) for value in asked] == [IDS, MASK]
    assert len(made.model.graph.output) == 1
    if all(not entry.domain for entry in made.model.opset_import):
        onnx.checker.check_model(made.model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.model.SerializeToString(), options)
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    (found,) = session.run(None, _feed(texts, **padding))
    assert found.dtype == {"float32": np.float32, "uint8": np.uint8}[made.output]
    return found


def _means(texts: list[list[int]] = TEXTS) -> NDArray[np.float32]:
    return np.stack([TABLE[text].mean(axis=0) for text in texts])


def _close(found: NDArray[Any], wanted: NDArray[Any], within: float = 1e-6) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= within


def _refused(model: onnx.ModelProto, *words: str, tail: Tail | None = MEAN) -> None:
    with pytest.raises(ModelError) as caught:
        complete(model, PATH, tail)
    for word in words:
        assert word in caught.value.message


# ── from tokens to one vector ────────────────────────────────────────────────────────────────────────────────────────

POOLED: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "mean": lambda states: states.mean(axis=0),
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("opset", IR)
@pytest.mark.parametrize("pooling", POOLED)
def test_states_of_tokens_become_one_vector_in_every_version_of_the_operators(
    pooling: str, opset: int, normalize: bool
) -> None:
    made = complete(_model(opset=opset), PATH, Tail(pooling, (), normalize))
    wanted = np.stack([POOLED[pooling](TABLE[text]) for text in TEXTS])
    if normalize:
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for more in range(5):
        _close(_vectors(made, garbage=np.random.default_rng(more), more=more), wanted)


@pytest.mark.parametrize("pooling", POOLED)
def test_a_vector_has_the_same_bytes_alone_and_in_any_batch(pooling: str) -> None:
    made = complete(_model(), PATH, Tail(pooling, (), normalize=True))
    session = onnxruntime.InferenceSession(made.model.SerializeToString())
    random = np.random.default_rng(2)
    texts = [random.integers(0, len(TABLE), length).tolist() for length in range(1, 81)]
    alone = [session.run(None, feed([text]))[0][0].tobytes() for text in texts]
    for _ in range(60):
        chosen = random.choice(len(texts), random.integers(1, 9), replace=False)
        batch = feed([texts[i] for i in chosen], more=int(random.integers(0, 20)))
        (vectors,) = session.run(None, batch)
        assert [vector.tobytes() for vector in vectors] == [alone[i] for i in chosen]


@pytest.mark.parametrize("name", ["last_hidden_state", "token_embeddings"])
def test_states_are_found_by_their_name_among_other_outputs(name: str) -> None:
    nodes = [
        helper.make_node("Neg", ["states"], ["hidden_states.0"]),
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("Identity", ["states"], [name]),
    ]
    outputs = [("hidden_states.0", FLOAT), (name, FLOAT)]
    made = complete(_model([nodes[1], nodes[0], nodes[2]], outputs=outputs), PATH, MEAN)
    _close(_vectors(made), _means())


@pytest.mark.parametrize("order", list(permutations(("last_hidden_state", "sentence_embedding", "token_embeddings"))))
def test_a_sentence_embedding_is_taken_as_it_is_wherever_it_stands(order: tuple[str, ...]) -> None:
    nodes = [
        LOOK_UP,
        helper.make_node("Neg", ["last_hidden_state"], ["token_embeddings"]),
        helper.make_node("ReduceMax", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0),
    ]
    model = _model(nodes, outputs=[(name, FLOAT) for name in order])
    # Neither pooled nor scaled again, whatever the files say; and they may say nothing.
    for tail in (Tail("cls", (), normalize=True), None):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        made = complete(copy, PATH, tail)
        _close(_vectors(made, TEXTS[:1]), TABLE[TEXTS[0]].max(axis=0, keepdims=True))


def test_dense_layers_of_the_model_directory_follow_the_pooling(tmp_path: Path) -> None:
    matrix = np.random.default_rng(4).standard_normal((5, DIM)).astype(np.float32)
    shift = np.arange(5, dtype=np.float32)
    write_weights(tmp_path / "model.safetensors", {"linear.weight": matrix, "linear.bias": shift})
    dense = Dense(tmp_path / "model.safetensors", "torch.nn.modules.activation.Tanh")
    for hidden in (DIM, 0):
        made = complete(_model(opset=11), PATH, Tail("mean", (dense,), normalize=False), hidden)
        _close(_vectors(made), np.tanh(_means() @ matrix.T + shift))
    with pytest.raises(ModelError, match="the modules do not fit"):
        complete(_model(), PATH, Tail("mean", (dense,), normalize=False), hidden=DIM + 1)


def test_states_without_a_word_on_pooling_are_refused() -> None:
    _refused(_model(), "/models/tiny", "1_Pooling/config.json", "--pooling", tail=None)


def test_outputs_that_are_not_known_are_refused_by_name() -> None:
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["logits"]), helper.make_node("Neg", ["logits"], ["loss"])]
    _refused(_model(nodes, outputs=[("logits", FLOAT), ("loss", FLOAT)]), str(PATH), "logits, loss", "last_hidden_state")


# ── types of the output ──────────────────────────────────────────────────────────────────────────────────────────────


def _cast(name: str, kind: int) -> list[onnx.NodeProto]:
    gather = helper.make_node("Gather", ["table", "input_ids"], ["states"])
    pool = helper.make_node("ReduceMax", ["states"], ["pooled"], axes=[1], keepdims=0)
    source = {"last_hidden_state": "states", "sentence_embedding": "pooled"}[name]
    return [gather, pool, helper.make_node("Cast", [source], [name], to=kind)]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("name", ["last_hidden_state", "sentence_embedding"])
def test_other_floats_are_given_as_float32(name: str, kind: int) -> None:
    made = complete(_model(_cast(name, kind), outputs=[(name, kind)]), PATH, MEAN)
    assert made.output == "float32"
    wanted = _means(TEXTS[:1]) if name == "last_hidden_state" else TABLE[TEXTS[0]].max(axis=0, keepdims=True)
    _close(_vectors(made, TEXTS[:1]), wanted, within=2e-3 if kind == TensorProto.FLOAT16 else 1e-6)


def test_bfloat16_is_given_as_float32() -> None:
    kind = TensorProto.BFLOAT16
    made = complete(_model(_cast("sentence_embedding", kind), outputs=[("sentence_embedding", kind)]), PATH, None)
    _close(_vectors(made, TEXTS[:1]), TABLE[TEXTS[0]].max(axis=0, keepdims=True), within=2e-2)


def test_vectors_of_bytes_stay_bytes_and_are_said_to_be() -> None:
    nodes = _cast("sentence_embedding", TensorProto.UINT8)
    nodes.insert(2, helper.make_node("Abs", ["pooled"], ["positive"]))
    nodes[-1].input[0] = "positive"
    made = complete(_model(nodes, outputs=[("sentence_embedding", TensorProto.UINT8)]), PATH, MEAN)
    assert made.output == "uint8"
    wanted = np.abs(TABLE[TEXTS[0]].max(axis=0, keepdims=True)).astype(np.uint8)
    assert wanted.any()
    assert _vectors(made, TEXTS[:1]).tolist() == wanted.tolist()


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL])
def test_vectors_of_another_type_are_refused_by_its_name(kind: int) -> None:
    model = _model(_cast("sentence_embedding", kind), outputs=[("sentence_embedding", kind)])
    _refused(model, str(PATH), TensorProto.DataType.Name(kind).lower(), "float", "uint8")


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _one(kind: int) -> TensorProto:
    return _constant("one", 1, helper.tensor_dtype_to_np_dtype(kind))


def _exactly(name: str, kind: int = INT64) -> onnx.NodeProto:
    """The input unchanged, through an operator that takes it in the type of `_one` only."""
    return helper.make_node("And" if kind == TensorProto.BOOL else "Mul", [name, "one"], [f"same_{name}"])


@pytest.mark.parametrize("opset", IR)
@pytest.mark.parametrize("kind", [INT64, INT32])
def test_token_types_are_0_for_every_token(kind: int, opset: int) -> None:
    nodes = [_exactly("token_type_ids"), helper.make_node("Gather", ["table", "same_token_type_ids"], ["last_hidden_state"])]
    inputs = [IDS, ("token_type_ids", kind), MASK]
    made = complete(_model(nodes, inputs, constants=[_one(kind)], opset=opset), PATH, MEAN)
    _close(_vectors(made), np.stack([TABLE[0]] * 3))


@pytest.mark.parametrize("opset", IR)
@pytest.mark.parametrize("kind", [INT64, INT32])
def test_positions_count_the_tokens_of_each_text_from_0(kind: int, opset: int) -> None:
    nodes = [_exactly("position_ids"), helper.make_node("Gather", ["table", "same_position_ids"], ["last_hidden_state"])]
    inputs = [MASK, ("position_ids", kind), IDS]
    made = complete(_model(nodes, inputs, constants=[_one(kind)], opset=opset), PATH, MEAN)
    _close(_vectors(made, more=2), np.stack([TABLE[: len(text)].mean(axis=0) for text in TEXTS]))
    last = complete(_model(nodes, inputs, constants=[_one(kind)], opset=opset), PATH, Tail("last", (), normalize=False))
    _close(_vectors(last, more=2), np.stack([TABLE[len(text) - 1] for text in TEXTS]))


@pytest.mark.parametrize("kind", [INT32, INT64, FLOAT, TensorProto.FLOAT16, TensorProto.BOOL])
def test_ids_of_32_bits_and_a_mask_of_any_type_are_made_of_those_of_64_bits(kind: int) -> None:
    nodes = [
        helper.make_node("Add", ["input_ids", "none"], ["ids"]),
        _exactly("attention_mask", kind),
        helper.make_node("Cast", ["same_attention_mask"], ["kept"], to=FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["column"]),
        helper.make_node("Gather", ["table", "ids"], ["states"]),
        helper.make_node("Mul", ["states", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "first"], ["sentence_embedding"], keepdims=0),
    ]
    constants = [_constant("last", [2]), _constant("first", [1]), _constant("none", 0, np.int32), _one(kind)]
    inputs = [("input_ids", INT32), ("attention_mask", kind)]
    made = complete(_model(nodes, inputs, [("sentence_embedding", FLOAT)], constants), PATH, None)
    wanted = np.stack([TABLE[text].sum(axis=0) for text in TEXTS])
    _close(_vectors(made, garbage=np.random.default_rng(1), more=2), wanted)


def test_ids_of_32_bits_reach_the_branches_of_an_if() -> None:
    branches = {
        name: helper.make_graph(
            [
                helper.make_node("Add", ["input_ids", "none"], [f"ids_{name}"]),
                helper.make_node("Gather", ["table", f"ids_{name}"], [name]),
            ],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, None)],
        )
        for name in ("then", "otherwise")
    }
    node = helper.make_node(
        "If", ["yes"], ["last_hidden_state"], then_branch=branches["then"], else_branch=branches["otherwise"]
    )
    constants = [_constant("yes", True, bool), _constant("none", 0, np.int32)]
    made = complete(_model([node], [("input_ids", INT32), MASK], constants=constants), PATH, MEAN)
    _close(_vectors(made), _means())


@pytest.mark.parametrize("opset", IR)
@pytest.mark.parametrize("kind", [FLOAT, TensorProto.FLOAT16])
def test_caches_of_earlier_tokens_are_empty(kind: int, opset: int) -> None:
    heads, size = 2, DIM // 2
    cache = helper.make_tensor_value_info("past_key_values.0.key", kind, ["batch", heads, "past", size])
    other = helper.make_tensor_value_info("past_key_values.0.value", kind, ["batch", heads, "past", size])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Reshape", ["found", "split"], ["by_head"]),
        helper.make_node("Transpose", ["by_head"], ["heads"], perm=[0, 2, 1, 3]),
        helper.make_node("Cast", ["heads"], ["now"], to=kind),
        helper.make_node("Concat", ["past_key_values.0.key", "now", "past_key_values.0.value"], ["all"], axis=2),
        helper.make_node("Cast", ["all"], ["whole"], to=FLOAT),
        helper.make_node("Transpose", ["whole"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "joined"], ["last_hidden_state"]),
    ]
    constants = [_constant("split", [0, 0, heads, size]), _constant("joined", [0, 0, DIM])]
    made = complete(_model(nodes, [IDS, cache, other, MASK], constants=constants, opset=opset), PATH, MEAN)
    _close(_vectors(made), _means(), within=1e-6 if kind == FLOAT else 2e-3)


@pytest.mark.parametrize("shape", [["batch", "heads", "past", 4], ["batch", 2, "past", "size"], ["batch", 2, "past"], None])
def test_a_cache_whose_shape_is_not_known_is_refused_by_name(shape: Any) -> None:
    cache = helper.make_tensor_value_info("past_key_values.3.key", FLOAT, shape)
    _refused(_model(inputs=[IDS, MASK, cache]), str(PATH), "past_key_values.3.key")


@pytest.mark.parametrize("order", list(permutations(("token_type_ids", "attention_mask", "position_ids", "input_ids"))))
def test_inputs_may_come_in_any_order(order: tuple[str, ...]) -> None:
    nodes = [
        helper.make_node("Add", ["token_type_ids", "position_ids"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["positions"]),
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Add", ["words", "positions"], ["last_hidden_state"]),
    ]
    made = complete(_model(nodes, [(name, INT64) for name in order]), PATH, MEAN)
    _close(_vectors(made), np.stack([(TABLE[text] + TABLE[: len(text)]).mean(axis=0) for text in TEXTS]))


def test_a_graph_without_a_mask_is_pooled_by_it_all_the_same() -> None:
    made = complete(_model(inputs=[IDS]), PATH, MEAN)
    _close(_vectors(made, garbage=np.random.default_rng(3), more=3), _means())


def test_a_graph_whose_constants_are_inputs_as_well_is_completed() -> None:
    """As files of version 3 have them, which is what older exports wrote."""
    table = helper.make_tensor_value_info("table", FLOAT, TABLE.shape)
    made = complete(_model(inputs=[table, IDS, MASK], opset=11), PATH, MEAN)
    _close(_vectors(made), _means())


def test_inputs_that_are_not_known_are_refused_by_name() -> None:
    inputs = [IDS, ("pixel_values", FLOAT), MASK, ("decoder_input_ids", INT64)]
    _refused(_model(inputs=inputs), str(PATH), "decoder_input_ids, pixel_values")
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    _refused(_model(inputs=[IDS, MASK, flag]), "use_cache_branch")


def test_a_graph_without_token_ids_is_refused() -> None:
    nodes = [helper.make_node("Gather", ["table", "tokens"], ["last_hidden_state"])]
    _refused(_model(nodes, [("tokens", INT64), MASK]), str(PATH), "no input input_ids")


@pytest.mark.parametrize("opset", [1, 9, 10])
def test_versions_of_the_operators_that_are_too_old_are_refused(opset: int) -> None:
    model = _model()
    model.opset_import[0].version = opset
    _refused(model, str(PATH), f"version {opset} ", "at least 11")


def test_the_operators_may_be_called_by_their_full_name() -> None:
    model = _model(opset=12)
    model.opset_import[0].domain = "ai.onnx"
    assert not complete(model, PATH, MEAN).one_by_one


def test_names_of_the_export_are_never_taken() -> None:
    once = complete(_model([LOOK_UP], [IDS, ("token_type_ids", INT64), MASK]), PATH, MEAN)
    names = [node.name for node in once.model.graph.node if node.name]
    values = [name for node in once.model.graph.node for name in node.output]
    constants = [tensor.name for tensor in once.model.graph.initializer]
    for group in (names, values, constants):
        assert len(set(group)) == len(group)
    assert all(name.startswith("embedpool_") for name in [*names, *set(constants) - {"table"}])


# ── what must run alone ──────────────────────────────────────────────────────────────────────────────────────────────

DYNAMIC = [
    helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
    helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
]
STATES = helper.make_node("Gather", ["table", "input_ids"], ["x"])
END = helper.make_node("Identity", ["y"], ["last_hidden_state"])


def _branch(nodes: Sequence[onnx.NodeProto]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("y", FLOAT, None)])


def _if(*nodes: onnx.NodeProto, output: str = "y") -> onnx.NodeProto:
    """The nodes where the condition does not hold."""
    plain = [helper.make_node("Identity", ["x"], ["y"])]
    return helper.make_node("If", ["yes"], [output], then_branch=_branch(plain), else_branch=_branch(nodes))


def _function(*nodes: onnx.NodeProto, name: str = "Body") -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, ["x", "yes"], ["y"], nodes, opsets)


CALL = helper.make_node("Body", ["x", "yes"], ["y"], domain="local")
YES = _constant("yes", True, bool)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(_model([STATES, *DYNAMIC, END]), id="at the top"),
        pytest.param(_model([STATES, _if(*DYNAMIC), END], constants=[YES]), id="in a branch"),
        pytest.param(_model([STATES, _if(_if(*DYNAMIC)), END], constants=[YES]), id="in a branch of a branch"),
        pytest.param(_model([STATES, CALL, END], constants=[YES], functions=[_function(*DYNAMIC)]), id="in a function"),
        pytest.param(
            _model([STATES, CALL, END], constants=[YES], functions=[_function(_if(*DYNAMIC))]), id="in a branch in a function"
        ),
        pytest.param(
            _model([STATES, _if(CALL), END], constants=[YES], functions=[_function(*DYNAMIC)]), id="in a function in a branch"
        ),
    ],
)
def test_a_scale_over_all_values_anywhere_in_a_graph_makes_texts_run_alone(model: onnx.ModelProto) -> None:
    assert one_by_one(model)
    made = complete(model, PATH, MEAN)
    assert made.one_by_one
    _close(_vectors(made, TEXTS[:1]), _means(TEXTS[:1]), within=0.05)


def test_a_product_with_a_scale_over_all_values_makes_texts_run_alone() -> None:
    product = helper.make_node("DynamicQuantizeMatMul", ["x", "b", "s"], ["y"], domain="com.microsoft")
    assert complete(_model([STATES, product, END]), PATH, MEAN).one_by_one


def test_scales_that_do_not_depend_on_what_runs_together_let_texts_run_together() -> None:
    plain = complete(_model(), PATH, MEAN)
    static = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    constants = [_constant("scale", 0.03, np.float32), _constant("zero", 128, np.uint8)]
    fixed = complete(_model([STATES, *static, END], constants=constants), PATH, MEAN)
    size = {"K": 32, "N": 8, "bits": 4, "block_size": 32, "accuracy_level": 4}
    product = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **size)
    blocks = complete(_model([STATES, product, END]), PATH, MEAN)
    assert [made.one_by_one for made in (plain, fixed, blocks)] == [False] * 3
    _close(_vectors(fixed), _means(), within=0.05)


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (_model(), "fp32"),
        (_model(_cast("sentence_embedding", TensorProto.FLOAT16)), "fp16"),
        (_model(constants=[_constant("half", [[1.0]], np.float16)]), "fp16"),
        (_model(constants=[_constant("codes", [[1]], np.int8), _constant("half", [[1.0]], np.float16)]), "q8"),
        (_model(constants=[_constant("codes", [[1]], np.uint8)]), "q8"),
        (_model(constants=[_constant("zero", 1, np.uint8)]), "fp32"),
        (_model([LOOK_UP, helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft", bits=4)]), "q4"),
        (_model([LOOK_UP, helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft", bits=8)]), "q8"),
    ],
    ids=str,
)
def test_a_graph_says_with_what_it_computes(model: onnx.ModelProto, wanted: str) -> None:
    assert precision(model) == wanted
    assert has_float16(model) == any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer) or wanted == "fp16"


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _external(tmp_path: Path) -> tuple[onnx.ModelProto, Path]:
    tiny_graph(tmp_path / "model.onnx", pooled=True, external=True)
    return read(tmp_path / "model.onnx"), tmp_path / "model.onnx"


def _place(tensor: TensorProto, **changed: str | None) -> None:
    known = {entry.key: entry.value for entry in tensor.external_data} | changed
    del tensor.external_data[:]
    for key, value in known.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)


def _files_refused(model: onnx.ModelProto, path: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        external_files(model, path)
    for word in (str(path), *words):
        assert word in caught.value.message


def test_weights_beside_a_graph_are_found(tmp_path: Path) -> None:
    model, path = _external(tmp_path)
    assert external_files(model, path) == [tmp_path / "model.onnx_data"]
    tiny_graph(tmp_path / "inside.onnx")
    assert external_files(read(tmp_path / "inside.onnx"), tmp_path / "inside.onnx") == []


def test_weights_in_several_files_are_all_found_once(tmp_path: Path) -> None:
    model, path = _external(tmp_path)
    _place(model.graph.initializer[1], location="b", offset="0")
    (tmp_path / "b").write_bytes(bytes(8))
    assert external_files(model, path) == [tmp_path / "b", tmp_path / "model.onnx_data"]


CONSTANT = helper.make_node("Constant", [], ["y"], value=_constant("c", [1.0], np.float32))


@pytest.mark.parametrize(
    ("model", "node"),
    [
        pytest.param(_model([CONSTANT, END]), lambda graph: graph.graph.node[0], id="at the top"),
        pytest.param(
            _model([STATES, _if(CONSTANT), END], constants=[YES]),
            lambda graph: graph.graph.node[1].attribute[0].g.node[0],
            id="in a branch",
        ),
        pytest.param(
            _model([STATES, CALL, END], functions=[_function(CONSTANT)]),
            lambda graph: graph.functions[0].node[0],
            id="in a function",
        ),
    ],
)
def test_weights_in_constants_anywhere_in_a_graph_are_found(
    tmp_path: Path, model: onnx.ModelProto, node: Callable[[onnx.ModelProto], onnx.NodeProto]
) -> None:
    tensor = node(model).attribute[0].t
    tensor.data_location = TensorProto.EXTERNAL
    _place(tensor, location="constants", offset="0", length="4")
    _files_refused(model, tmp_path / "model.onnx", "constants", "missing")
    (tmp_path / "constants").write_bytes(bytes(4))
    assert external_files(model, tmp_path / "model.onnx") == [tmp_path / "constants"]


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    model, path = _external(tmp_path)
    (tmp_path / "model.onnx_data").unlink()
    _files_refused(model, path, "model.onnx_data", "missing")


def test_a_directory_in_the_place_of_weights_is_refused(tmp_path: Path) -> None:
    model, path = _external(tmp_path)
    (tmp_path / "model.onnx_data").unlink()
    (tmp_path / "model.onnx_data").mkdir()
    _files_refused(model, path, "model.onnx_data", "missing")


@pytest.mark.parametrize("kept", [0, 1, -1])
def test_a_file_of_weights_that_was_cut_off_is_named(tmp_path: Path, kept: int) -> None:
    model, path = _external(tmp_path)
    data = tmp_path / "model.onnx_data"
    whole = data.read_bytes()
    data.write_bytes(whole[:kept])
    with pytest.raises(ModelError) as caught:
        external_files(model, path)
    for word in (str(data), f"{len(whole[:kept])} bytes", "not downloaded whole"):
        assert word in caught.value.message


@pytest.mark.parametrize("order", [1, -1])
def test_a_file_of_weights_must_hold_all_tensors_whichever_comes_first(tmp_path: Path, order: int) -> None:
    model, path = _external(tmp_path)
    for tensor, length in zip(list(model.graph.initializer)[::order], ("8", "5000"), strict=True):
        _place(tensor, location="weights", offset="0", length=length)
    (tmp_path / "weights").write_bytes(bytes(4999))
    with pytest.raises(ModelError, match="needs 5000"):
        external_files(model, path)
    (tmp_path / "weights").write_bytes(bytes(5000))
    assert external_files(model, path) == [tmp_path / "weights"]


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "sub/weights", "..", ".", "", None, "../dir/model.onnx_data", "sub/../x", "//x"]
)
def test_weights_outside_of_the_directory_are_refused(tmp_path: Path, location: str | None) -> None:
    model, path = _external(tmp_path / "dir")
    for secret in (tmp_path / "secret", tmp_path / "dir/x"):
        secret.write_bytes(bytes(5000))
    (tmp_path / "dir/sub").mkdir()
    (tmp_path / "dir/sub/weights").write_bytes(bytes(5000))
    for tensor in model.graph.initializer:
        _place(tensor, location=location)
    _files_refused(model, path, repr(location or ""), "own directory")


@pytest.mark.parametrize(
    "changed",
    [{"offset": "first"}, {"length": "1.5"}, {"length": ""}, {"location": "a\0b"}],
    ids=str,
)
def test_places_of_weights_that_make_no_sense_are_refused(tmp_path: Path, changed: dict[str, str]) -> None:
    model, path = _external(tmp_path)
    _place(model.graph.initializer[0], **changed)
    _files_refused(model, path)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="cannot be read"):
        read(path)
    tiny_graph(path)
    whole = path.read_bytes()
    for raw in (b"version https://git-lfs.github.com/spec/v1", b"<html>", whole[:-5], whole[: len(whole) // 2], bytes(100)):
        path.write_bytes(raw)
        with pytest.raises(ModelError, match="not an ONNX file") as caught:
            read(path)
        assert str(path) in caught.value.message


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(ModelError, match=r"model\.onnx"):
        complete(read(path), path, MEAN)


def test_a_graph_is_read_without_its_weights_and_keeps_their_place(tmp_path: Path) -> None:
    model, path = _external(tmp_path)
    complete(model, path, None)
    (tmp_path / "completed.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(str(tmp_path / "completed.onnx"))
    assert np.array_equal(session.run(None, feed(TEXTS))[0], TABLE[[text[0] for text in TEXTS]])
