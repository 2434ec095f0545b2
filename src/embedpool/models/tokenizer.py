"""Texts to token ids, one list per text, never padded. The only place that imports `tokenizers`.

The vocabulary that ships with embedpool is BERT's uncased one (30,522 WordPieces, Apache-2.0, google-research/bert): the
weights package behind `--model minilm` brings none.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

# One core per worker: the library's own thread pool would take all others. Read when the library is first used.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer as _Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from embedpool.errors import ModelError

BERT_UNCASED = "builtin:bert-base-uncased"
BERT_UNCASED_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


class Tokenizer:
    """`source` is the path of a tokenizer.json, or BERT_UNCASED. Raises ModelError where it cannot be read."""

    def __init__(self, source: str, max_tokens: int, *, lowercase: bool = False) -> None:
        self._whole = _load(source)
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cut = _Tokenizer.from_str(self._whole.to_str())
        self._cut.enable_truncation(max_tokens)
        self._lowercase = lowercase

    def tokens(self, texts: Sequence[str], *, truncate: bool) -> list[list[int]]:
        """Token ids with the model's special tokens; at most max_tokens of them where `truncate`."""
        if self._lowercase:
            texts = [text.lower() for text in texts]
        source = self._cut if truncate else self._whole
        return [encoding.ids for encoding in source.encode_batch_fast(list(texts))]

    def pad_id(self) -> int:
        """The id of the padding token; 0 where none has a usual name (padding is masked, any id would do)."""
        for name in ("[PAD]", "<pad>", "<|endoftext|>"):
            found = self._whole.token_to_id(name)
            if found is not None:
                return int(found)
        return 0


def _load(source: str) -> _Tokenizer:
    if source == BERT_UNCASED:
        return _bert_uncased()
    try:
        return _Tokenizer.from_file(source)
    except Exception as error:  # the library raises plain Exception for whatever its Rust side reports
        raise ModelError(f"{source} is not a tokenizer that can be read: {error}") from error


def vocabulary() -> bytes:
    """The bundled vocabulary, one piece per line, in the order of ids. Raises ModelError if it was changed."""
    packed = files("embedpool.models").joinpath("bert_base_uncased.vocab.gz").read_bytes()
    text = gzip.decompress(packed)
    if hashlib.sha256(text).hexdigest() != BERT_UNCASED_SHA256:
        raise ModelError("the bundled BERT vocabulary is damaged: install embedpool again")
    return text


def _bert_uncased() -> _Tokenizer:
    pieces = {piece: i for i, piece in enumerate(vocabulary().decode().splitlines())}
    tokenizer = _Tokenizer(WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", pieces["[CLS]"]), ("[SEP]", pieces["[SEP]"])]
    )
    return tokenizer


def digest_parts(source: str) -> list[Path | bytes]:
    """What the fingerprint covers of a tokenizer."""
    return [BERT_UNCASED_SHA256.encode()] if source == BERT_UNCASED else [Path(source)]
