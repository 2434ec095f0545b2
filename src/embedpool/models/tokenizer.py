"""Texts to token ids, one list per text, never padded. The only place that imports `tokenizers`.

The vocabulary that ships with embedpool is BERT's uncased one (30,522 WordPieces, Apache-2.0, google-research/bert): the
weights package behind `--model minilm` brings none.
"""

from __future__ import annotations

import gzip
import hashlib
import json
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
from embedpool.memory import give_back
from embedpool.models.encoding import Cut
from embedpool.models.registry import BERT_UNCASED, BERT_UNCASED_SHA256

_LARGE_BYTES = 4 << 20  # of a tokenizer.json, from which giving its parser's memory back is worth the time
PADS = ("[PAD]", "<pad>", "<|endoftext|>", "<|finetune_right_pad_id|>")


class Tokenizer:
    """`source` is the path of a tokenizer.json, or BERT_UNCASED. Raises ModelError where it cannot be read."""

    def __init__(self, source: str, max_tokens: int, *, lowercase: bool = False) -> None:
        self._tokenizer = _load(source)
        # A careless export's padding and truncation must not be followed.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cut: Cut = ""
        self._max_tokens = max_tokens
        self._lowercase = lowercase

    def tokens(self, texts: Sequence[str], cut: Cut) -> list[list[int]]:
        """Token ids with the model's special tokens; at most max_tokens of them unless `cut` is ""."""
        if cut != self._cut:  # one tokenizer for all: Gemma's has 96 MB
            self._cut = cut
            if cut:
                self._tokenizer.enable_truncation(self._max_tokens, direction=cut)
            else:
                self._tokenizer.no_truncation()
        if self._lowercase:
            texts = [text.lower() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def pad_id(self, named: str = "") -> int:
        """The id of the padding token, `named` or of a usual name. Padding is masked, but its id must be one of the
        vocabulary's. Raises ModelError where `named` is not."""
        if named:
            found = self._tokenizer.token_to_id(named)
            if found is None:
                raise ModelError(f"the tokenizer's padding token {named!r} is not in its vocabulary: tokenizer.json is damaged")
            return int(found)
        usual = [self._tokenizer.token_to_id(name) for name in PADS]
        return next((int(id) for id in usual if id is not None), 0)

    def append(self, token: str) -> None:
        """Lets every text end with this token, if it does not yet. Raises ModelError if there is no such token."""
        id = self._tokenizer.token_to_id(token)
        if id is None:
            raise ModelError(f"the tokenizer has no token {token}, with which this model's texts end")
        if self.tokens(["a"], "")[0][-1] == id:
            return
        data = json.loads(self._tokenizer.to_str())
        found = data["post_processor"]
        parts = [] if found is None else found["processors"] if found["type"] == "Sequence" else [found]
        ending = {"SpecialToken": {"id": token, "type_id": 0}}
        # Two templates one behind the other do not add up in this library: the one that is there is made longer.
        template = next((part for part in parts if part["type"] == "TemplateProcessing"), None)
        if template is None:
            template = {"type": "TemplateProcessing", "single": [_whole("A")], "pair": [_whole("A"), _whole("B")]}
            template["special_tokens"] = {}
            parts.append(template)
        template["single"].append(ending)
        template["special_tokens"][token] = {"id": token, "ids": [id], "tokens": [token]}
        data["post_processor"] = {"type": "Sequence", "processors": parts}
        self._tokenizer = _Tokenizer.from_str(json.dumps(data))

    def save(self, path: Path) -> None:
        """Writes it as tokenizer.json, without what a text's encoding does not need, in the form that is read fastest."""
        path.write_text(_quick_to_read(self._tokenizer.to_str()), encoding="utf-8")


def _quick_to_read(text: str) -> str:
    """A tokenizer.json with its merges as "a b", as they were before 2024, instead of ["a", "b"]: a quarter less time to read
    (Gemma, 514,906 merges: 0.86 and 0.66 s of processor time). As it was where a piece has a space, or where it means anything
    else."""
    data = json.loads(text)
    merges = data["model"].get("merges") or []
    if not merges or any(" " in piece for pair in merges for piece in pair):
        return text
    data["model"]["merges"] = [" ".join(pair) for pair in merges]
    shorter = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return shorter if _Tokenizer.from_str(shorter).to_str() == text else text


def _whole(sequence: str) -> dict[str, object]:
    return {"Sequence": {"id": sequence, "type_id": 0}}


def _load(source: str) -> _Tokenizer:
    if source == BERT_UNCASED:
        return _bert_uncased()
    try:
        loaded = _Tokenizer.from_file(source)
        if os.stat(source).st_size > _LARGE_BYTES:
            give_back()  # the parser's memory: 180 of 278 MB with Gemma's tokenizer
        return loaded
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
