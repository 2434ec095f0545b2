"""The model's own tokenizer, for routes that speak of tokens. The pool tokenizes what it runs; nothing here is on that way.

Read when it is first asked for: Gemma's takes 96 MB and most of a second, and most gateways are never asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Struct


class TokenizerSpec(Struct, frozen=True):
    """Where an artifact's tokenizer is, and how its texts are prepared. Passed on by the supervisor as JSON."""

    file: str
    lowercase: bool = False
    prompts: dict[str, str] = {}

    @staticmethod
    def from_json(text: str) -> TokenizerSpec:
        return msgspec.json.decode(text, type=TokenizerSpec)


class Token(Struct, frozen=True):
    """`start` and `stop` count characters of the text that was tokenized, prompt included; a special token has none."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokens:
    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        found = Tokenizer.from_file(self.spec.file)
        found.no_padding()
        found.no_truncation()
        return found

    def of(self, texts: Sequence[str], *, special: bool, prompt_name: str | None) -> list[list[Token]] | None:
        """Each text's tokens, as the model reads them but for its length; None where there is no prompt of that name."""
        prompt = self.spec.prompts.get(prompt_name, None) if prompt_name is not None else ""
        if prompt is None:
            return None
        whole = [prompt + text for text in texts]
        read = [text.lower() for text in whole] if self.spec.lowercase else whole
        # One by one: a batch would start the library's own threads, one per core.
        encodings = [self._tokenizer.encode(text, add_special_tokens=special) for text in read]
        return [_tokens(text, encoding) for text, encoding in zip(whole, encodings, strict=True)]

    def text_of(self, ids: Sequence[int]) -> str | None:
        """What these tokens stand for, without special ones; None if one is not in the vocabulary."""
        if any(not 0 <= id < self._tokenizer.get_vocab_size() for id in ids):
            return None
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _tokens(text: str, encoding: Any) -> list[Token]:
    found = []
    rows = zip(encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    for id, token, (start, stop), special in rows:
        found.append(Token(id, token, True, None, None) if special else Token(id, text[start:stop], False, start, stop))
    return found
