"""llama.cpp behind the server of llama-cpp-python; the GGUF file was made of the same weights in fp32."""

from __future__ import annotations

import sys
from typing import Any

import line
from over_http import Server


def load(order: dict[str, Any]) -> Server:
    command = [sys.executable, "-m", "llama_cpp.server", "--model", order["gguf"], "--embedding", "true"]
    command += ["--host", "127.0.0.1", "--port", "{port}", "--n_threads", str(order["cores"])]
    command += ["--n_threads_batch", str(order["cores"]), "--n_ctx", "512", "--n_batch", "2048", "--n_ubatch", "2048"]
    return Server(order, command, "/v1/embeddings", {"model": "model"}, "llama-cpp-python")


if __name__ == "__main__":
    line.run(load)
