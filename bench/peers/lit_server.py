"""LitServe: starts litserve_app.py, or connects to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import line
from over_http import Server


def load(order: dict[str, Any]) -> Server:
    command = [sys.executable, str(Path(__file__).with_name("litserve_app.py"))]
    return Server(order, command, "/v1/embeddings", {"model": "model"}, "litserve", "sentence-transformers", "torch")


if __name__ == "__main__":
    line.run(load)
