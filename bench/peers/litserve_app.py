"""LitServe: sentence-transformers behind its OpenAI embedding specification, one worker process on all cores. PEER_MODEL names
the model's directory, PEER_PORT the port, PEER_CORES the threads."""

from __future__ import annotations

import os
from typing import Any

import litserve


class Embeddings(litserve.LitAPI):
    def setup(self, device: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(int(os.environ["PEER_CORES"]))
        self.model = SentenceTransformer(os.environ["PEER_MODEL"], device=device)

    def predict(self, inputs: Any) -> Any:
        return self.model.encode(inputs, normalize_embeddings=True, show_progress_bar=False)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"embeddings": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Embeddings(spec=litserve.OpenAIEmbeddingSpec()), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PEER_PORT"]), generate_client_file=False)
