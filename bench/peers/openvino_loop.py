"""OpenVINO with its own performance hints: LATENCY for queries, THROUGHPUT with asynchronous requests for many texts.

Only one of the two compiled models is held at a time, as a user would have one.
"""

from __future__ import annotations

from typing import Any

import line
import numpy as np
from tokens import Tokens, vectors


class OpenVino:
    def __init__(self, order: dict[str, Any]) -> None:
        import openvino

        self._library = openvino
        self._core = openvino.Core()
        self._model = self._core.read_model(order["openvino"])
        self._inputs = {each.any_name for each in self._model.inputs}
        self._options = {"INFERENCE_PRECISION_HINT": order["precision"], "INFERENCE_NUM_THREADS": order["cores"]}
        self._tokens = Tokens(order["model"])
        self._hint, self._compiled = "", None
        self._compile("LATENCY")

    def _compile(self, hint: str) -> Any:
        if hint != self._hint:
            self._hint, self._compiled = hint, None
            self._compiled = self._core.compile_model(self._model, "CPU", {**self._options, "PERFORMANCE_HINT": hint})
        return self._compiled

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        queue = self._library.AsyncInferQueue(self._compile("THROUGHPUT"))
        found: dict[int, np.ndarray] = {}

        def done(request: Any, what: tuple[list[int], np.ndarray]) -> None:
            rows, mask = what
            found.update(zip(rows, vectors(request.get_output_tensor(0).data, mask), strict=True))

        queue.set_callback(done)
        order = line.by_length(texts)
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            given, mask = self._matrices([texts[i] for i in rows])
            queue.start_async(given, (rows, mask))
        queue.wait_all()
        return np.array([found[i] for i in range(len(texts))])

    def query(self, text: str) -> np.ndarray:
        given, mask = self._matrices([text])
        vector: np.ndarray = vectors(self._compile("LATENCY")(given)[0], mask)[0]
        return vector

    def _matrices(self, texts: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        matrices = self._tokens.matrices(texts)
        return {name: matrix for name, matrix in matrices.items() if name in self._inputs}, matrices["attention_mask"]

    def about(self) -> dict[str, Any]:
        return {"versions": line.versions("openvino", "tokenizers")}

    def close(self) -> None: ...


if __name__ == "__main__":
    line.run(OpenVino)
