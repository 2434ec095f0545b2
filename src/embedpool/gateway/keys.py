"""API keys: whoever asks, over whatever, must show one as a bearer token. Compared in constant time, all of them, however they
differ in length."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence


class Keys:
    """The keys of one gateway; none: everybody may ask."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def fit(self, authorization: str) -> bool:
        """Whether this header shows one of them."""
        scheme, _, shown = authorization.partition(" ")
        found = _digest(shown.strip() if scheme.lower() == "bearer" else "")
        # Every key is looked at, so that the time says nothing of which one it was.
        return bool(sum([hmac.compare_digest(found, key) for key in self._digests]))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
