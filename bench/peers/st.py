"""sentence-transformers: PyTorch in fp32 or bfloat16, or its ONNX backend. `encode` sorts by length and batches itself."""

from __future__ import annotations

from typing import Any

import line
import numpy as np


class SentenceTransformers:
    def __init__(self, order: dict[str, Any]) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(order["cores"])
        if order.get("backend") == "onnx":
            kwargs: dict[str, Any] = {"provider": "CPUExecutionProvider", "file_name": "onnx/model.onnx"}
            self._model = SentenceTransformer(order["onnx"], backend="onnx", device="cpu", model_kwargs=kwargs)
        else:
            kwargs = {"dtype": getattr(torch, order.get("dtype", "float32"))}
            self._model = SentenceTransformer(order["model"], device="cpu", model_kwargs=kwargs)
            if kwargs["dtype"] != torch.float32:
                self._model = self._model.to(kwargs["dtype"])  # the Dense modules behind the model, too

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        vectors: np.ndarray = self._model.encode(texts, batch_size=batch, normalize_embeddings=True, show_progress_bar=False)
        return vectors

    def query(self, text: str) -> np.ndarray:
        vector: np.ndarray = self._model.encode(text, normalize_embeddings=True, show_progress_bar=False)
        return vector

    def about(self) -> dict[str, Any]:
        return {"versions": line.versions("sentence-transformers", "transformers", "torch", "onnxruntime")}

    def close(self) -> None: ...


if __name__ == "__main__":
    line.run(SentenceTransformers)
