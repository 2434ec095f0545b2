"""`python -m embedpool.doctor.runtime`: loads ONNX Runtime and prints what it is, as JSON. A process of its own:
a build for another processor ends by SIGILL."""

from __future__ import annotations

import json

from embedpool.models.session import runtime_build

if __name__ == "__main__":
    print(json.dumps(runtime_build()))
