"""Which libraries are measured beside the pool, in which of their forms: a row each. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS = ""  # the environment that runs the benchmark


@dataclass(frozen=True)
class Peer:
    """`script` of bench/peers/ run by environment `env` (a file of bench/peers/requirements), its order holding `options`.

    `batches` are the batch sizes tried for many texts; the best one is measured. `server`: programs of their own connect to it.
    `precision` is that of the arithmetic, for the share of the limit. `needs`: the form of the model that it reads (Files).
    """

    name: str
    script: str
    env: str
    options: dict[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = (8, 32)
    server: bool = False
    precision: str = "fp32"
    models: tuple[str, ...] = ("minilm",)
    needs: str = "model"


def pool(name: str, arithmetic: str = "fp32", models: tuple[str, ...] = ("minilm",), **settings: Any) -> Peer:
    """A configuration of the pool; `settings` are those of config.Config. It forms its batches itself."""
    return Peer(name, "embed_pool", OURS, {"settings": settings}, (0,), True, arithmetic, models)


ALL = ("minilm", "gemma")
REFERENCE = "sentence-transformers, PyTorch fp32"
ST = "sentence-transformers"
PEERS = (
    pool("embedpool, fp32", models=ALL, precision="fp32"),
    pool("embedpool, bf16 (OpenVINO)", "bf16", ALL, provider="openvino", provider_options="precision=bf16"),
    pool("embedpool, q8", "int8", ALL, precision="q8"),
    pool("embedpool, q4", "int4", ("gemma",), precision="q4"),
    Peer(REFERENCE, "st", ST, models=ALL),
    Peer("sentence-transformers, PyTorch fp32, 2 processes", "st", ST, {"processes": 2}),
    Peer("sentence-transformers, PyTorch bf16", "st", ST, {"dtype": "bfloat16"}, precision="bf16", models=ALL),
    Peer("sentence-transformers, ONNX", "st", ST, {"backend": "onnx"}, needs="onnx"),
    Peer("fastembed", "fast_embed", "fastembed", needs="onnx"),
    Peer("fastembed, parallel=2", "fast_embed", "fastembed", {"parallel": 2}, (32, 128), needs="onnx"),
    Peer("infinity, PyTorch", "infinity", "infinity", {"engine": "torch"}, server=True),
    Peer("infinity, ONNX", "infinity", "infinity", {"engine": "optimum"}, server=True, needs="onnx"),
    Peer("LitServe", "lit_server", "litserve", server=True),
    Peer("mosec", "mosec_server", "mosec", server=True),
    Peer("llama.cpp", "llama_server", "llama-cpp", server=True, needs="gguf"),
    Peer("OpenVINO, f32", "openvino_loop", "openvino", {"precision": "f32"}, (4, 16), models=ALL, needs="openvino"),
    Peer("OpenVINO, bf16", "openvino_loop", "openvino", {"precision": "bf16"}, (4, 16), False, "bf16", ALL, "openvino"),
    Peer("ONNX Runtime, one process", "plain_ort", "onnxruntime", batches=(4, 16), models=ALL, needs="graph"),
)


def chosen(model: str, only: tuple[str, ...], peers: tuple[Peer, ...] = PEERS) -> tuple[Peer, ...]:
    """Those of a model; with `only`, those whose name has one of these words in it."""
    of_model = [peer for peer in peers if model in peer.models]
    return tuple(peer for peer in of_model if not only or any(word.lower() in peer.name.lower() for word in only))
