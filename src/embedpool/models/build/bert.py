"""BERT and its children RoBERTa and XLM-R: post-norm encoder layers (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).

Serves MiniLM, bge, e5, gte, multilingual-e5 and whatever else says `model_type` bert, roberta or xlm-roberta.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embedpool.errors import ModelError
from embedpool.models.build.safetensors import Weights
from embedpool.models.build.writer import IDS, MASK, MICROSOFT, Writer

TYPES = ("bert", "roberta", "xlm-roberta")


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of config.json."""

    layers: int
    heads: int
    epsilon: float
    activation: str
    first_position: int  # RoBERTa counts positions from behind the padding's id

    @staticmethod
    def of(config: dict[str, Any]) -> Shape:
        kind = config.get("position_embedding_type", "absolute")
        if kind != "absolute":
            raise ModelError(f"position_embedding_type {kind} is not supported: export the model to ONNX")
        if config.get("is_decoder"):
            raise ModelError("a BERT with is_decoder true is not supported: export the model to ONNX")
        return Shape(
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
            activation=str(config.get("hidden_act", "gelu")),
            first_position=0 if config["model_type"] == "bert" else int(config.get("pad_token_id", 1)) + 1,
        )


def states(g: Writer, weights: Weights, config: dict[str, Any]) -> str:
    """float32[batch, tokens, hidden]: the last layer's states."""
    shape = Shape.of(config)
    mask = g.node("Cast", MASK, to=6)  # int32, as the attention operator wants it
    x = _embeddings(g, weights, shape)
    for number in range(shape.layers):
        x = _layer(g, weights, shape, f"encoder.layer.{number}.", x, mask)
    return x


def _embeddings(g: Writer, weights: Weights, shape: Shape) -> str:
    words = g.node("Gather", g.weight("words", weights["embeddings.word_embeddings.weight"]), IDS)
    # Every token is of type 0; its row is the same for all positions.
    types = weights["embeddings.token_type_embeddings.weight"][0]
    table = weights["embeddings.position_embeddings.weight"][shape.first_position :] + types
    length = g.node("Shape", IDS, start=1, end=2)
    positions = g.node("Slice", g.weight("positions", table), g.ints(0), length, g.ints(0))
    return _norm(g, weights, shape, "embeddings.LayerNorm", g.node("Add", words, positions))


def _layer(g: Writer, weights: Weights, shape: Shape, at: str, x: str, mask: str) -> str:
    own = at + "attention.self."
    kinds = ("query", "key", "value")
    stacked = np.concatenate([weights[f"{own}{kind}.weight"] for kind in kinds])
    bias = np.concatenate([weights[f"{own}{kind}.bias"] for kind in kinds])
    width = len(bias) // 3
    q, k, v = g.split(g.linear(x, own + "qkv", stacked), [width] * 3)
    context = g.node(
        "MultiHeadAttention", q, k, v, g.weight(own + "qkv.bias", bias), mask, domain=MICROSOFT, num_heads=shape.heads
    )
    attended = g.linear(context, at + "attention.output.dense", weights[at + "attention.output.dense.weight"])
    x = _add_and_norm(g, weights, shape, at + "attention.output", attended, x)
    inner = g.linear(x, at + "intermediate.dense", weights[at + "intermediate.dense.weight"])
    inner = _activated(g, shape, inner, g.weight(at + "intermediate.dense.bias", weights[at + "intermediate.dense.bias"]))
    outer = g.linear(inner, at + "output.dense", weights[at + "output.dense.weight"])
    return _add_and_norm(g, weights, shape, at + "output", outer, x)


def _activated(g: Writer, shape: Shape, x: str, bias: str) -> str:
    if shape.activation == "gelu":
        return g.node("BiasGelu", x, bias, domain=MICROSOFT)
    x = g.node("Add", x, bias)
    if shape.activation in ("gelu_new", "gelu_pytorch_tanh"):
        return g.node("Gelu", x, approximate="tanh")
    if shape.activation == "relu":
        return g.node("Relu", x)
    raise ModelError(f"hidden_act {shape.activation} is not supported: export the model to ONNX")


def _add_and_norm(g: Writer, weights: Weights, shape: Shape, at: str, x: str, skip: str) -> str:
    bias = g.weight(at + ".dense.bias", weights[at + ".dense.bias"])
    scale, shift = (g.weight(f"{at}.LayerNorm.{kind}", weights[f"{at}.LayerNorm.{kind}"]) for kind in ("weight", "bias"))
    return g.node("SkipLayerNormalization", x, skip, scale, shift, bias, domain=MICROSOFT, epsilon=shape.epsilon)


def _norm(g: Writer, weights: Weights, shape: Shape, at: str, x: str) -> str:
    scale, shift = (g.weight(f"{at}.{kind}", weights[f"{at}.{kind}"]) for kind in ("weight", "bias"))
    return g.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=shape.epsilon)
