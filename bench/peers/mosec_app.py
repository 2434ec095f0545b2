"""mosec: sentence-transformers in worker processes of one thread each, batched dynamically, as its examples do."""

from __future__ import annotations

import os
import sys
from typing import Any

import line
from over_http import Server


def serve(model: str, cores: int) -> None:
    import mosec
    import torch
    from sentence_transformers import SentenceTransformer

    class Embeddings(mosec.Worker):
        def __init__(self) -> None:
            torch.set_num_threads(1)
            self.model = SentenceTransformer(model, device="cpu")

        def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
            texts = [text for request in data for text in request["input"]]
            rows = iter(self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False).tolist())
            return [{"data": [{"embedding": next(rows)} for _ in request["input"]]} for request in data]

    server = mosec.Server()
    server.append_worker(Embeddings, num=cores, max_batch_size=8, max_wait_time=1)
    server.register_runtime({"/v1/embeddings": [mosec.Runtime(Embeddings, num=cores, max_batch_size=8, max_wait_time=1)]})
    server.run()


def load(order: dict[str, Any]) -> Server:
    os.environ["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, __file__, "--serve", order["model"], str(order["cores"]), "--address", "127.0.0.1"]
    command += ["--port", "{port}", "--log-level", "warning"]
    return Server(order, command, "/v1/embeddings", {}, "mosec", "sentence-transformers", "torch")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        model, cores = sys.argv[2], int(sys.argv[3])
        sys.argv = [sys.argv[0], *sys.argv[4:]]  # the rest is mosec's own
        serve(model, cores)
    else:
        line.run(load)
