"""mosec: sentence-transformers in a worker process of one thread for each core, requests batched dynamically, as its examples
do. PEER_MODEL names the model's directory, PEER_CORES says how many workers; the command line is mosec's own."""

from __future__ import annotations

import os
from typing import Any

import mosec


class Embeddings(mosec.Worker):
    def __init__(self) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(1)
        self.model = SentenceTransformer(os.environ["PEER_MODEL"], device="cpu")

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        texts = [text for request in data for text in request["input"]]
        rows = iter(self.model.encode(texts, normalize_embeddings=True, show_progress_bar=False).tolist())
        return [{"data": [{"embedding": next(rows)} for _ in request["input"]]} for request in data]


if __name__ == "__main__":
    server = mosec.Server()
    workers = mosec.Runtime(Embeddings, num=int(os.environ["PEER_CORES"]), max_batch_size=8, max_wait_time=1)
    server.register_runtime({"/v1/embeddings": [workers]})
    server.run()
