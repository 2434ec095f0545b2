"""What one gateway was told at its start. Values only; __main__ reads them from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from embedpool.errors import ConfigError
from embedpool.gateway.tokens import TokenizerSpec

Compat = Literal["akidb-strict", "tei-1.8"]
COMPATS: tuple[str, ...] = get_args(Compat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`compat`: where versions of a dialect differ, the version meant. "akidb-strict" takes only what AkiDB takes and answers
    500 where AkiDB does; "tei-1.8" is Text Embeddings Inference up to 1.8: 413 instead of 422, no truncation unless asked for.

    `auto_truncate` None: as the dialects do it, that is, long texts are cut but for tei-1.8. `aliases` are further names of the
    pool's model, "*" for any name. `keys`: who asks must show one of them; none: everybody may.
    """

    compat: frozenset[Compat] = frozenset()
    max_body_bytes: int = 16 << 20  # the pool's own limit of one request
    max_client_batch: int = 32  # texts in one TEI request; TEI's default
    max_concurrent: int = 512  # requests at once, of all clients; TEI's default
    auto_truncate: bool | None = None
    timeout_s: float = 30.0
    max_timeout_s: float = 300.0
    receive_timeout_s: float = 10.0  # for a request's head, and for its body
    aliases: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tokenizer: TokenizerSpec | None = None  # None: not known

    @property
    def truncates(self) -> bool:
        """Whether long texts are cut when a request does not say."""
        return "tei-1.8" not in self.compat if self.auto_truncate is None else self.auto_truncate


def read_keys(file: str) -> tuple[str, ...]:
    """The file's lines that are not blank. A file without keys is a mistake, not an open door: ConfigError."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"file of API keys {file} cannot be read: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ConfigError(f"file of API keys {file} holds no key")
    return found
