"""Texts to padded matrices, for peers that are only a runtime: what a user writes around one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


class Tokens:
    """The tokenizer of a model's directory, cut at the length at which sentence-transformers cuts."""

    def __init__(self, directory: str) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")
        most = json.loads(Path(directory, "sentence_bert_config.json").read_text())["max_seq_length"]
        self._tokenizer.enable_truncation(most)
        self._tokenizer.enable_padding()

    def matrices(self, texts: list[str]) -> dict[str, np.ndarray]:
        """int64[texts, longest] each, by the name of the graph's input."""
        found = self._tokenizer.encode_batch(texts)
        ids = np.array([each.ids for each in found], np.int64)
        mask = np.array([each.attention_mask for each in found], np.int64)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def vectors(output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """float32[texts, dim] of unit length: the mean over each text's tokens, unless the graph has done that."""
    if output.ndim == 3:
        weights = mask[:, :, None].astype(np.float32)
        output = (output * weights).sum(1) / weights.sum(1)
    found: np.ndarray = output / np.linalg.norm(output, axis=1, keepdims=True)
    return found
