"""Gemma3 encoders (EmbeddingGemma) and Qwen3: pre-norm layers with rotary positions, gated MLPs and grouped key/value heads.

They differ in what Shape says. Grouped heads need no copies of keys and values: the query heads of a group are stacked
along the token axis, so that one matrix product serves the whole group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embedpool.errors import ModelError
from embedpool.models.build.safetensors import Weights
from embedpool.models.build.writer import IDS, MASK, MICROSOFT, Writer

TYPES = ("gemma3_text", "qwen3")
FULL, SLIDING = "full_attention", "sliding_attention"
BLOCK = 128  # MLAS_SGEMM_STRIDEK
NEVER = -1e30  # added to a score: its weight is exactly 0, and a row with nothing to attend to is still finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of config.json."""

    gemma: bool  # norms around both halves of a layer, weights counted from 1, embeddings scaled, tanh gelu
    hidden: int
    heads: int
    groups: int  # key/value heads
    head: int  # values per head
    epsilon: float
    scale: float  # of scores
    causal: bool
    reach: int  # sliding layers: how far a token looks to either side
    longest: int
    layers: tuple[str, ...]
    thetas: dict[str, float]

    @staticmethod
    def of(config: dict[str, Any]) -> Shape:
        gemma = config["model_type"] == "gemma3_text"
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        head = int(config.get("head_dim") or hidden // heads)
        count = int(config["num_hidden_layers"])
        _refuse(config, gemma)
        both_ways = bool(config.get("use_bidirectional_attention")) if gemma else False
        kinds = _layer_kinds(config, gemma, count)
        window = int(config.get("sliding_window", 4096) or 0)  # where a number is missing, transformers' default
        if SLIDING in kinds and window <= 0:
            raise ModelError("sliding_window is missing for layers that need it: export the model to ONNX")
        return Shape(
            gemma=gemma,
            hidden=hidden,
            heads=heads,
            groups=int(config.get("num_key_value_heads") or heads),
            head=head,
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            scale=float(config.get("query_pre_attn_scalar") or 256) ** -0.5 if gemma else head**-0.5,
            causal=not both_ways,
            reach=window // 2 if both_ways else window - 1,
            longest=int(config["max_position_embeddings"]),
            layers=kinds,
            thetas=_thetas(config, gemma),
        )


def _refuse(config: dict[str, Any], gemma: bool) -> None:
    """Raises ModelError for what this module would build wrongly."""
    activation = config.get("hidden_activation") if gemma else config.get("hidden_act", "silu")
    wanted = "gelu_pytorch_tanh" if gemma else "silu"
    if activation not in (None, wanted):
        raise ModelError(f"the activation {activation} is not supported for {config['model_type']}: export the model to ONNX")
    for name in ("attention_bias", "attn_logit_softcapping"):
        if config.get(name):
            raise ModelError(f"{name} is not supported for {config['model_type']}: export the model to ONNX")


def _layer_kinds(config: dict[str, Any], gemma: bool, count: int) -> tuple[str, ...]:
    kinds = config.get("layer_types")
    if kinds is None and gemma:
        pattern = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
        kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(count)]
    if kinds is None and config.get("use_sliding_window") and config.get("sliding_window", 4096) is not None:
        first = int(config.get("max_window_layers", 28))
        kinds = [SLIDING if i >= first else FULL for i in range(count)]
    kinds = tuple(map(str, kinds or [FULL] * count))
    if len(kinds) != count or not set(kinds) <= {FULL, SLIDING}:
        raise ModelError(f"config.json has {count} layers of the kinds {', '.join(sorted(set(kinds)))}: it contradicts itself")
    return kinds


def _thetas(config: dict[str, Any], gemma: bool) -> dict[str, float]:
    """Base of the rotary frequencies, by kind of layer; both spellings that transformers has had."""
    by_kind = config.get("rope_parameters") or {}
    plain = {k: v for k, v in by_kind.items() if not isinstance(v, dict)}
    given = {kind: by_kind[kind] if isinstance(by_kind.get(kind), dict) else plain for kind in (FULL, SLIDING)}
    for row in (*given.values(), config.get("rope_scaling") or {}):
        kind = row.get("rope_type", row.get("type", "default"))
        if kind != "default":
            raise ModelError(f"rotary positions of type {kind} are not supported: export the model to ONNX")
    full = given[FULL].get("rope_theta", config.get("rope_theta", 1e6 if gemma else 1e4))
    local = config.get("rope_local_base_freq", 1e4) if gemma else full
    return {FULL: float(full), SLIDING: float(given[SLIDING].get("rope_theta", local))}


def states(g: Writer, weights: Weights, config: dict[str, Any], max_tokens: int) -> str:
    """float32[batch, tokens, hidden]: the states behind the last norm. Texts are at most `max_tokens` long."""
    shape = Shape.of(config)
    table = weights["embed_tokens.weight"]
    # The same product that the model makes after the look-up, made once.
    x = g.node("Gather", g.weight("words", table * np.float32(shape.hidden**0.5) if shape.gemma else table), IDS)
    angles = _Angles(g, shape, min(max_tokens, shape.longest))
    biases = {kind: _bias(g, shape, kind) for kind in sorted(set(shape.layers))}
    skip, normed = x, _norm(g, weights, shape, "layers.0.input_layernorm", x)
    for number, kind in enumerate(shape.layers):
        at = f"layers.{number}."
        y = _attention(g, weights, shape, at + "self_attn.", normed, angles.of(kind), biases[kind])
        if shape.gemma:
            y = _norm(g, weights, shape, at + "post_attention_layernorm", y)
        before = "pre_feedforward_layernorm" if shape.gemma else "post_attention_layernorm"
        normed, skip = _add_and_norm(g, weights, shape, at + before, y, skip)
        y = _mlp(g, weights, shape, at + "mlp.", normed)
        if shape.gemma:
            y = _norm(g, weights, shape, at + "post_feedforward_layernorm", y)
        last = number + 1 == len(shape.layers)
        after = "norm" if last else f"layers.{number + 1}.input_layernorm"
        normed, skip = _add_and_norm(g, weights, shape, after, y, skip)
    return normed


def _norm_weight(g: Writer, weights: Weights, shape: Shape, name: str) -> str:
    values = weights[name + ".weight"]
    return g.weight(name, values + np.float32(1) if shape.gemma else values)


def _norm(g: Writer, weights: Weights, shape: Shape, name: str, x: str) -> str:
    scale = _norm_weight(g, weights, shape, name)
    return g.node("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=shape.epsilon)


def _add_and_norm(g: Writer, weights: Weights, shape: Shape, name: str, x: str, skip: str) -> tuple[str, str]:
    """(norm of the sum, the sum)."""
    scale = _norm_weight(g, weights, shape, name)
    made = g.nodes("SkipSimplifiedLayerNormalization", [x, skip, scale], 4, MICROSOFT, epsilon=shape.epsilon)
    return made[0], made[3]


class _Angles:
    """What turns a head: positions int64[batch, tokens], once, and cosines and sines float32[longest, head / 2], once per base.

    ONNX Runtime's operator would also take the first token's position alone, and count; OpenVINO then turns nothing.
    """

    def __init__(self, g: Writer, shape: Shape, longest: int) -> None:
        self._g, self._shape, self._longest = g, shape, longest
        self._made: dict[float, tuple[str, str]] = {}
        self._positions = ""

    def of(self, kind: str) -> tuple[str, str, str]:
        g, theta = self._g, self._shape.thetas[kind]
        self._positions = self._positions or g.node("Expand", g.node("Unsqueeze", _places(g), g.ints(0)), g.node("Shape", IDS))
        if theta not in self._made:
            # In float32 throughout, as the reference computes them: at position 2,000 the rounding shows.
            exponents = np.arange(0, self._shape.head, 2, dtype=np.float32) / np.float32(self._shape.head)
            frequencies = np.float32(1) / np.float32(theta) ** exponents
            turns = np.outer(np.arange(self._longest, dtype=np.float32), frequencies).astype(np.float32)
            name = f"angles_{len(self._made)}"
            self._made[theta] = (g.weight(name + ".cos", np.cos(turns)), g.weight(name + ".sin", np.sin(turns)))
        return (self._positions, *self._made[theta])


def _bias(g: Writer, shape: Shape, kind: str) -> str:
    """What is added to scores, broadcast to [batch, groups, heads of a group, tokens, tokens]; "" for nothing."""
    allowed = []
    places = _places(g)
    ahead = g.node("Sub", g.node("Unsqueeze", places, g.ints(0)), g.node("Unsqueeze", places, g.ints(1)))
    if shape.causal:
        # Padding is behind every real token, which never looks ahead: the mask itself is not needed.
        allowed.append(g.node("LessOrEqual", ahead, g.constant(0, np.int64)))
    else:
        allowed.append(g.node("Unsqueeze", g.node("Cast", MASK, to=9), g.ints(1, 2, 3)))
    if kind == SLIDING:
        allowed.append(g.node("LessOrEqual", g.node("Abs", ahead), g.constant(shape.reach, np.int64)))
    both = allowed[0] if len(allowed) == 1 else g.node("And", *allowed)
    return g.node("Where", both, g.constant(0.0), g.constant(NEVER))


def _places(g: Writer) -> str:
    """int64[tokens]: 0, 1, 2, …"""
    return g.node("Range", g.constant(0, np.int64), g.node("Squeeze", _length(g)), g.constant(1, np.int64))


def _length(g: Writer) -> str:
    return g.node("Shape", IDS, start=1, end=2)


def _attention(g: Writer, weights: Weights, shape: Shape, at: str, x: str, angles: tuple[str, str, str], bias: str) -> str:
    size, groups, each = shape.head, shape.groups, shape.heads // shape.groups
    stacked = np.concatenate([weights[f"{at}{kind}_proj.weight"] for kind in "qkv"])
    q, k, v = g.split(g.linear(x, at + "qkv", stacked), [shape.heads * size, groups * size, groups * size])

    def turned(y: str, count: int, norm: str) -> str:
        """[batch, count, tokens, size], normed and rotated."""
        y = g.node("Transpose", g.node("Reshape", y, g.ints(0, 0, count, size)), perm=[0, 2, 1, 3])
        y = _norm(g, weights, shape, at + norm, y)
        return g.node("RotaryEmbedding", y, *angles, domain=MICROSOFT, interleaved=0)

    q = turned(q, shape.heads, "q_norm")
    k = turned(k, groups, "k_norm")
    v = g.node("Transpose", g.node("Reshape", v, g.ints(0, 0, groups, size)), perm=[0, 2, 1, 3])
    length = _length(g)
    stack = g.node("Reshape", q, g.ints(0, groups, -1, size))  # the group's heads one below the other
    scores = _scores(g, shape, stack, k)
    split = g.node("Concat", g.ints(0, groups, each, -1), length, axis=0)
    scores = g.node("Add", g.node("Reshape", scores, split), bias)
    shares = g.node("Softmax", scores, axis=-1)
    stacked_shares = g.node("Concat", g.ints(0, groups, -1), length, axis=0)
    context = g.node("MatMul", g.node("Reshape", shares, stacked_shares), v)
    context = g.node("Reshape", context, g.node("Concat", g.ints(0, shape.heads), length, g.ints(size), axis=0))
    context = g.node("Reshape", g.node("Transpose", context, perm=[0, 2, 1, 3]), g.ints(0, 0, shape.heads * size))
    return g.linear(context, at + "o_proj", weights[at + "o_proj.weight"])


def _scores(g: Writer, shape: Shape, q: str, k: str) -> str:
    """q · kᵀ, wide heads in pieces. The runtime's kernel adds up either in blocks of 128 or at once, depending on how long the
    padded texts are, so that a text's last digits would depend on its batch (5e-7); at most 128 are always one block."""
    widths = [min(BLOCK, shape.head - at) for at in range(0, shape.head, BLOCK)]
    pairs = list(zip(g.split(q, widths), g.split(k, widths), strict=True)) if len(widths) > 1 else [(q, k)]
    parts = [g.node("FusedMatMul", a, b, domain=MICROSOFT, transB=1, alpha=shape.scale) for a, b in pairs]
    total = parts[0]
    for part in parts[1:]:
        total = g.node("Add", total, part)
    return total


def _mlp(g: Writer, weights: Weights, shape: Shape, at: str, x: str) -> str:
    gate, up = weights[at + "gate_proj.weight"], weights[at + "up_proj.weight"]
    first, second = g.split(g.linear(x, at + "gate_up", np.concatenate([gate, up])), [len(gate), len(up)])
    if shape.gemma:
        first = g.node("Gelu", first, approximate="tanh")
    else:
        first = g.node("QuickGelu", first, domain=MICROSOFT, alpha=1.0)  # x · sigmoid(x), which is SiLU
    return g.linear(g.node("Mul", first, second), at + "down_proj", weights[at + "down_proj.weight"])
