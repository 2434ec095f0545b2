"""ONNX Runtime in one process, on all cores: sort by length, batch, run, mean."""

from __future__ import annotations

from typing import Any

import line
import numpy as np
from tokens import Tokens, vectors


class OnnxRuntime:
    def __init__(self, order: dict[str, Any]) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = order["cores"]
        self._session = ort.InferenceSession(order["graph"], options, providers=["CPUExecutionProvider"])
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._output = self._session.get_outputs()[0].name
        self._tokens = Tokens(order["model"])

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        order = line.by_length(texts)
        parts = [self._run([texts[i] for i in order[at : at + batch]]) for at in range(0, len(order), batch)]
        found = np.concatenate(parts)
        out = np.empty_like(found)
        out[order] = found
        return out

    def query(self, text: str) -> np.ndarray:
        vector: np.ndarray = self._run([text])[0]
        return vector

    def _run(self, texts: list[str]) -> np.ndarray:
        matrices = self._tokens.matrices(texts)
        given = {name: matrix for name, matrix in matrices.items() if name in self._inputs}
        return vectors(self._session.run([self._output], given)[0], matrices["attention_mask"])

    def about(self) -> dict[str, Any]:
        return {"versions": line.versions("onnxruntime", "tokenizers")}

    def close(self) -> None: ...


if __name__ == "__main__":
    line.run(OnnxRuntime)
