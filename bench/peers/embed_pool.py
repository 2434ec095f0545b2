"""The pool: a private one, or a client of one that another script of this kind has started."""

from __future__ import annotations

from typing import Any

import line
import numpy as np


class OfThePool:
    def __init__(self, order: dict[str, Any]) -> None:
        from embedpool import Client, Pool

        settings = {"model": order["model"], "workers": order["cores"], **order.get("settings", {})}
        self._client = Client(order["endpoint"]) if order.get("endpoint") else Pool(**settings)
        self._client.model(timeout_s=60)

    # prompt "": none, as for all others.

    def embed(self, texts: list[str], batch: int) -> np.ndarray:  # noqa: ARG002 - it forms batches itself
        return self._client.embed_documents(texts, prompt="")

    def query(self, text: str) -> np.ndarray:
        return self._client.embed_query(text, prompt="")

    def about(self) -> dict[str, Any]:
        return {"versions": line.versions("embedpool", "onnxruntime"), "endpoint": self._client.endpoint}

    def close(self) -> None:
        self._client.close()


if __name__ == "__main__":
    line.run(OfThePool)
