"""What callers give for texts, as strings that can be sent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from embedpool import errors
from embedpool.errors import BadText


def is_unicode(text: object) -> bool:
    """Whether it is a string that has a UTF-8 form."""
    try:
        return isinstance(text, str) and (text.isascii() or text.encode() is not None)
    except UnicodeEncodeError:
        return False


def as_strings(texts: Iterable[str], what: str = "texts") -> tuple[str, ...]:
    """The texts as plain strings: children of str (numpy's, for one) are not what msgspec encodes. Raises BadRequest for one
    string, which is a sequence of strings too, and for what is no sequence."""
    if isinstance(texts, str):
        raise errors.BadRequest(f"{what} is one string: give a list of strings")
    try:
        texts = tuple(texts)
    except TypeError:
        raise errors.BadRequest(f"{what} is a list of strings, not {texts!r}") from None
    if set(map(type, texts)) <= {str}:
        return texts
    return tuple(str(text) if isinstance(text, str) else text for text in texts)


def check_texts(texts: Sequence[Any]) -> None:
    """Raises BadText naming the first row that is not a string, or has a lone surrogate and so no UTF-8 form."""
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadText(f"text {row} is of type {type(text).__name__}, not str", row=row)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise BadText(f"text {row} has a lone surrogate, which is not valid Unicode text", row=row) from None
