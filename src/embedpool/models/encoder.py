"""Token ids to vectors: one ONNX Runtime session. Used in worker processes, and by `resolve` to try a model once.

Rows in, rows out: an encoder knows nothing of requests, jobs or segments. What it returns for a row depends on the row
alone: padding is masked, and no value is computed over a batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# Telemetry has been on by default in Linux wheels since 1.29; it is read at import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from embedpool.errors import ModelError
from embedpool.models.encoding import Vectors
from embedpool.models.spec import ModelSpec
from embedpool.models.tokenizer import Tokenizer

TEXT_OUTPUT = "sentence_embedding"  # one vector per text, pooled in the graph
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")  # one vector per token
_KNOWN_INPUTS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}


def open_session(path: str, threads: int) -> ort.InferenceSession:
    """A session on `threads` threads. Raises ModelError with the runtime's own words where it cannot be loaded."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread burns 47-333 ms of a core after each run, which other workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common public base class
        reason = str(error).split(" : ")[-1].strip() or type(error).__name__
        raise ModelError(f"{path} cannot be loaded: {reason}") from error


class OnnxEncoder:
    """An Encoder over a model directory's graph and tokenizer."""

    def __init__(self, spec: ModelSpec, threads: int = 1) -> None:
        self.spec = spec
        self._tokenizer = Tokenizer(spec.tokenizer, spec.max_tokens, lowercase=spec.lowercase)
        self._session = open_session(spec.onnx, threads)
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._feeds: dict[str, Any] = {}
        unknown = self._inputs - _KNOWN_INPUTS
        if unknown:
            raise ModelError(f"{spec.onnx} has inputs that are not known here: {', '.join(sorted(unknown))}")

    def tokens(self, texts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        return self._tokenizer.tokens(texts, truncate=truncate)

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:
        ids = np.full((len(rows), width), self.spec.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        (states,) = self._session.run([self.spec.output], self._feed(ids, mask))
        return pool(states, mask, self.spec.pooling)

    def _feed(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        feed = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._inputs:
            feed["token_type_ids"] = np.zeros_like(ids)
        if "position_ids" in self._inputs:
            feed["position_ids"] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        return {name: value for name, value in feed.items() if name in self._inputs}


def pool(states: NDArray[Any], mask: NDArray[np.int64], pooling: str) -> Vectors:
    """float32[rows, dim] from float[rows, tokens, dim], or from float[rows, dim] where the graph has pooled already.

    Each row is reduced on its own over its real tokens, in the same order whatever the batch and its padding.
    """
    if pooling == "none":
        return np.asarray(states, np.float32)
    if pooling == "cls":
        return np.asarray(states[:, 0], np.float32)
    lengths = mask.sum(axis=1)
    if pooling == "last":
        return np.asarray(states[np.arange(len(states)), lengths - 1], np.float32)
    out = np.empty((len(states), states.shape[2]), np.float32)
    for row, n in enumerate(lengths):
        np.mean(states[row, :n], axis=0, dtype=np.float32, out=out[row])
    return out


def graph_output(session: ort.InferenceSession, path: str) -> tuple[str, bool]:
    """(name, pooled) of the output to read, chosen by name because exports differ in their order."""
    names = [node.name for node in session.get_outputs()]
    if TEXT_OUTPUT in names:
        return TEXT_OUTPUT, True
    for name in TOKEN_OUTPUTS:
        if name in names:
            return name, False
    wanted = ", ".join((TEXT_OUTPUT, *TOKEN_OUTPUTS))
    raise ModelError(f"{path} has the outputs {', '.join(names)}: one of {wanted} is needed")
