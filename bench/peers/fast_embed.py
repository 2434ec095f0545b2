"""fastembed with a model of one's own (`add_custom_model`); `parallel` as its documentation recommends for data sets."""

from __future__ import annotations

from typing import Any

import line
import numpy as np


class FastEmbed:
    def __init__(self, order: dict[str, Any]) -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        TextEmbedding.add_custom_model(
            model="local/minilm",
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(hf="local/minilm"),
            dim=order["dim"],
            model_file="onnx/model.onnx",
        )
        self._parallel = order.get("parallel")
        self._model = TextEmbedding("local/minilm", specific_model_path=order["onnx"], threads=order["cores"])

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        return np.array(list(self._model.embed(texts, batch_size=batch, parallel=self._parallel)))

    def query(self, text: str) -> np.ndarray:
        vector: np.ndarray = next(iter(self._model.query_embed(text)))
        return vector

    def about(self) -> dict[str, Any]:
        return {"versions": line.versions("fastembed", "onnxruntime")}

    def close(self) -> None: ...


if __name__ == "__main__":
    line.run(FastEmbed)
