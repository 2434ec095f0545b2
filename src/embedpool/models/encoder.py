"""Token ids to vectors: one ONNX Runtime session over an artifact. Used in worker processes, and once when it is prepared.

Rows in, rows out: an encoder knows nothing of requests, jobs or segments. What it returns for a row depends on the row
alone: padding is masked, and no value is computed over a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedpool.memory import give_back
from embedpool.models.encoding import Cut, Interrupted, Vectors
from embedpool.models.session import open_session, run_options
from embedpool.models.spec import ModelSpec
from embedpool.models.tokenizer import Tokenizer

GRAPH, TOKENIZER = "model.onnx", "tokenizer.json"  # of an artifact


class OnnxEncoder:
    """An Encoder over an artifact's graph and tokenizer, on the GPU of that number if the model's provider has GPUs."""

    def __init__(self, spec: ModelSpec, threads: int, tokenizer: Tokenizer, device: int = 0) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        self._options = run_options()
        graph = Path(spec.directory) / GRAPH
        self._session = open_session(graph, threads, spec.provider, spec.provider_options, device)
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
        # EmbeddingGemma over 1,024 tokens, which takes 2 s, after 7 (18 at worst). To OpenVINO a whole graph is one node: there
        # the flag changes nothing, and the run gives its vectors at its end.
        self._options = options = run_options()
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
