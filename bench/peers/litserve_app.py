"""LitServe: sentence-transformers behind its OpenAI embedding specification, batched dynamically, one worker process."""

from __future__ import annotations

import sys
from typing import Any

import line
from over_http import Server


def serve(model: str, port: int, cores: int) -> None:
    import litserve
    import torch
    from sentence_transformers import SentenceTransformer

    class Embeddings(litserve.LitAPI):
        def setup(self, device: str) -> None:
            torch.set_num_threads(cores)
            self.model = SentenceTransformer(model, device=device)

        def predict(self, inputs: Any) -> Any:
            return self.model.encode(inputs, normalize_embeddings=True, show_progress_bar=False)

        def encode_response(self, output: Any) -> dict[str, Any]:
            return {"embeddings": output.tolist()}

    api = Embeddings(spec=litserve.OpenAIEmbeddingSpec())
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False)


def load(order: dict[str, Any]) -> Server:
    command = [sys.executable, __file__, "--serve", order["model"], "{port}", str(order["cores"])]
    return Server(order, command, "/v1/embeddings", {"model": "model"}, "litserve", "sentence-transformers", "torch")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        line.run(load)
