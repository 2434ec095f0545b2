"""Token ids to vectors: one ONNX Runtime session over an artifact. Used in worker processes, and once when it is prepared.

Rows in, rows out: an encoder knows nothing of requests, jobs or segments. What it returns for a row depends on the row
alone: padding is masked, and no value is computed over a batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

# Telemetry has been on by default in Linux wheels since 1.29; it is read at import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort

from embedpool.errors import ModelError
from embedpool.memory import give_back
from embedpool.models.encoding import Cut, Interrupted, Vectors
from embedpool.models.spec import ModelSpec
from embedpool.models.tokenizer import Tokenizer

GRAPH, DATA, TOKENIZER = "model.onnx", "model.onnx.data", "tokenizer.json"  # of an artifact


def runtime_build() -> dict[str, str]:
    """What of the runtime is loaded here: its version, what it was built as, and the providers that it could use."""
    return {"version": ort.__version__, "build": ort.get_build_info(), "providers": ", ".join(ort.get_available_providers())}


class OnnxEncoder:
    """An Encoder over an artifact's graph and tokenizer."""

    def __init__(self, spec: ModelSpec, threads: int, tokenizer: Tokenizer) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        self._options = ort.RunOptions()
        self._session = open_session(Path(spec.directory) / GRAPH, threads)
        give_back()  # packing weights takes as much as they have, for a moment

    def tokens(self, texts: Sequence[str], cut: Cut) -> list[list[int]]:
        return self._tokenizer.tokens(texts, cut)

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:
        ids = np.full((len(rows), width), self.spec.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        # The runtime looks at the flag between nodes: a run of MiniLM ends after 0.1 to 0.4 ms (median; 1.5 at worst), one of
        # EmbeddingGemma over 1,024 tokens, which takes 2 s, after 7 (18 at worst).
        self._options = options = ort.RunOptions()
        options.log_severity_level = 4  # that it was interrupted is no error
        try:
            vectors: Vectors = self._session.run(None, {"input_ids": ids, "attention_mask": mask}, options)[0]
        except Exception as error:
            if options.terminate:
                raise Interrupted from error
            raise
        return vectors

    def interrupt(self) -> None:
        self._options.terminate = True


def load_tokenizer(spec: ModelSpec) -> Tokenizer:
    """An artifact's tokenizer. Raises ModelError."""
    return Tokenizer(str(Path(spec.directory) / TOKENIZER), spec.max_tokens, lowercase=spec.lowercase)


def open_session(graph: Path, threads: int, *, optimized: Path | None = None) -> ort.InferenceSession:
    """A session on `threads` threads. Raises ModelError with the runtime's own words where it cannot be loaded.

    An artifact's graph is loaded as it is: it was optimised when it was made. With `optimized`, the graph is optimised and
    stored there, its weights in DATA beside it, in the form in which this machine's kernels read them; sessions that load
    this copy then share those pages instead of packing weights into memory of their own.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread burns 47-333 ms of a core after each run, which other workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        entries = {
            "session.optimized_model_external_initializers_file_name": DATA,
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
            "session.save_external_prepacked_constant_initializers": "1",
        }
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common public base class
        reason = str(error).split(" : ")[-1].strip() or type(error).__name__
        raise ModelError(f"{graph} cannot be loaded: {reason}") from error
