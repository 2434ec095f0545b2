"""mosec: starts mosec_app.py, or connects to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import line
from over_http import Server


def load(order: dict[str, Any]) -> Server:
    command = [sys.executable, str(Path(__file__).with_name("mosec_app.py")), "--address", "127.0.0.1", "--port", "{port}"]
    command += ["--timeout", "60000"]  # milliseconds; its own 3 s end large requests on a busy machine
    return Server(order, command, "/v1/embeddings", {}, "mosec", "sentence-transformers", "torch")


if __name__ == "__main__":
    line.run(load)
