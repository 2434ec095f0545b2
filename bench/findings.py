"""Result files as render.py and plots.py read them, and how numbers are written in tables. No measurement."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"

Row = tuple[str, str, str, str]  # what, its median, from – to over the repeats, goal


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def source_of(path: Path) -> str:
    """What a picture says it was drawn from."""
    return f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def spread(values: list[float]) -> str:
    return f"{min(values):,g} – {max(values):,g}"


def measured_on(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores (shared, noisy), Linux {machine['kernel'].split('-')[0]},"
        f" Python {machine['python']}, ONNX Runtime {machine['packages']['onnxruntime']}, {found['date']}."
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)])
