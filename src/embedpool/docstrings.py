"""Real texts that every machine with Python has: the docstrings of its standard library. For the demo and for benchmarks."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED = {"test", "tests", "distutils", "idlelib", "lib2to3", "site-packages", "turtledemo", "__pycache__"}
LEAST_CHARS = 40  # shorter docstrings ("See above.") say nothing


@dataclass(frozen=True, slots=True)
class Doc:
    name: str
    text: str

    @property
    def summary(self) -> str:
        return self.text.partition("\n\n")[0].replace("\n", " ").strip()


def docstrings(most: int) -> list[Doc]:
    """Docstrings of the running Python's standard library, spread evenly over it, the same on every run."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, Doc] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.isdisjoint(parts) and not any(part.startswith("_") and part != "__init__" for part in parts):
            for doc in _in_file(path, ".".join(parts).removesuffix(".__init__")):
                found.setdefault(doc.text, doc)
    docs = list(found.values())
    step = max(len(docs) / most, 1.0) if most else 1.0
    return [docs[int(i * step)] for i in range(min(most, len(docs)))]


def _in_file(path: Path, module: str) -> Iterator[Doc]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        name, node = pending.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= LEAST_CHARS:
                yield Doc(name, text)
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                named = [(str(getattr(child, "name", "_")), child) for child in node.body]
                pending += [(f"{name}.{own}", child) for own, child in named if not own.startswith("_")]
