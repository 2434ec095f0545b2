"""infinity-emb, by its command line; vectors as base64, which it offers and OpenAI's client asks for."""

from __future__ import annotations

from typing import Any

import line
from over_http import Server, program


def load(order: dict[str, Any]) -> Server:
    model = order["onnx"] if order["engine"] == "optimum" else order["model"]
    command = [program("infinity_emb"), "v2", "--model-id", model, "--engine", order["engine"], "--device", "cpu"]
    command += ["--port", "{port}", "--host", "127.0.0.1", "--no-bettertransformer", "--no-model-warmup"]
    command += ["--served-model-name", "model", "--pooling-method", "mean"]
    body = {"model": "model", "encoding_format": "base64"}
    return Server(order, command, "/embeddings", body, "infinity-emb", "torch", "onnxruntime")


if __name__ == "__main__":
    line.run(load)
