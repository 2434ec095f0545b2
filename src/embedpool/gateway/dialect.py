"""What the app knows of a dialect: its routes, and how it says what went wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from embedpool.errors import EmbedpoolError
from embedpool.gateway.reading import Unreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One route. `asked` is the type of its body, None for none; `open`: no key is needed; `counted`: takes one of the places
    for concurrent work. `answer` is an example for the documentation, `media` what the answer is."""

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    asked: type[Any] | None = None
    answer: object = None
    media: str = "application/json"
    open: bool = False
    counted: bool = False


class Dialect(Protocol):
    """Handlers raise Unreadable and EmbedpoolError; the app asks the dialect for the response."""

    name: str
    prefix: str  # of the paths that are its own, whether there is a route or not

    def endpoints(self) -> Sequence[Endpoint]: ...
    def unreadable(self, fault: Unreadable) -> Response: ...
    def refused(self, error: EmbedpoolError) -> Response: ...
