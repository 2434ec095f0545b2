"""Exports a model to ONNX as sentence-transformers' documentation does; the other ONNX peers read the same file."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from sentence_transformers import SentenceTransformer

    source, target = sys.argv[1:]
    options = {"export": True, "provider": "CPUExecutionProvider"}
    SentenceTransformer(source, backend="onnx", device="cpu", model_kwargs=options).save_pretrained(target)
