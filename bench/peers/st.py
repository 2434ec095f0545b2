"""sentence-transformers: PyTorch in fp32 or bfloat16, or its ONNX backend. `encode` sorts by length and batches itself.

With `processes`, many texts go through its own pool of so many processes, of one thread each.
"""

from __future__ import annotations

import os
from typing import Any

import line
import numpy as np


class SentenceTransformers:
    def __init__(self, order: dict[str, Any]) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(order["cores"])
        self._processes: int = order.get("processes", 0)
        self._pool: Any = None
        if order.get("backend") == "onnx":
            kwargs: dict[str, Any] = {"provider": "CPUExecutionProvider", "file_name": "onnx/model.onnx"}
            self._model = SentenceTransformer(order["onnx"], backend="onnx", device="cpu", model_kwargs=kwargs)
        else:
            kwargs = {"dtype": getattr(torch, order.get("dtype", "float32"))}
            self._model = SentenceTransformer(order["model"], device="cpu", model_kwargs=kwargs)
            if kwargs["dtype"] != torch.float32:
                self._model = self._model.to(kwargs["dtype"])  # the Dense modules behind the model, too

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        if self._processes and self._pool is None:
            os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that start now
            self._pool = self._model.start_multi_process_pool(["cpu"] * self._processes)
        options = {"batch_size": batch, "normalize_embeddings": True, "show_progress_bar": False, "pool": self._pool}
        vectors: np.ndarray = self._model.encode(texts, **options)
        return vectors

    def query(self, text: str) -> np.ndarray:
        vector: np.ndarray = self._model.encode(text, normalize_embeddings=True, show_progress_bar=False)
        return vector

    def about(self) -> dict[str, Any]:
        return {"versions": line.versions("sentence-transformers", "transformers", "torch", "onnxruntime")}

    def close(self) -> None:
        if self._pool is not None:
            self._model.stop_multi_process_pool(self._pool)


if __name__ == "__main__":
    line.run(SentenceTransformers)
