"""What the dialects share: the pool behind them, asked once per request, and given up when the client hangs up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from embedpool.client import AsyncClient
from embedpool.client.arena import Vectors
from embedpool.client.core import Answer
from embedpool.client.documents import Keywords
from embedpool.errors import Cancelled, EmbedpoolError, Overloaded
from embedpool.gateway.keys import Keys
from embedpool.gateway.metrics import Metrics
from embedpool.gateway.options import Options
from embedpool.gateway.reading import HUNG_UP, Asked, Wishes, wishes
from embedpool.naming import is_same_model
from embedpool.protocol import ModelCard, Truncate

STATUS_S = 1.0  # a probe wants a verdict, not patience
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """float32[texts, dim] and what is known of how it came to be. `seconds`: from asking the pool to its answer."""

    answer: Answer
    model: str
    characters: int
    seconds: float

    @property
    def vectors(self) -> Vectors:
        return self.answer.vectors


class Service:
    """One per gateway. `pool` is closed by whoever made it."""

    def __init__(self, pool: AsyncClient, options: Options) -> None:
        self.pool = pool
        self.options = options
        self.metrics = Metrics()
        self.keys = Keys(options.keys)
        self._working = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of `max_concurrent`, for a request that does work. Raises Overloaded where all are taken."""
        if self._working >= self.options.max_concurrent:
            raise Overloaded(f"{self._working} requests are being worked on, as many as this gateway takes")
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    async def unless_hung_up(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """What the work gives. Raises Cancelled, and ends the work and with it the pool's, when the client is gone first."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.metrics.hung_up.inc()
                raise Cancelled(HUNG_UP)
            return task.result()
        finally:
            for each in (task, gone):
                if not each.done():
                    each.cancel()
                    with suppress(asyncio.CancelledError, EmbedpoolError):
                        await each

    def wishes(self, request: Request, asked: Asked) -> Wishes:
        """Raises BadRequest."""
        return wishes(request.headers, asked, self.options, time.monotonic())

    async def embed(
        self, wished: Wishes, texts: Sequence[str], *, dim: int = 0, normalize: bool = True, truncate: Truncate = True
    ) -> Embedded:
        """The texts' vectors. Raises what AsyncClient.embed does."""
        self.metrics.texts.observe(len(texts))
        began_at = time.monotonic()
        card = await self.card(wished)
        keywords: Keywords = {**wished.keywords, "dim": dim, "normalize": normalize, "truncate": truncate}
        found = await self.pool.answer(texts, timeout_s=wished.deadline_at - time.monotonic(), **keywords)
        seconds = time.monotonic() - began_at
        self.metrics.tokens.inc(found.tokens)
        # Several workers at once can have run for longer than it took.
        self.metrics.deliver.observe(max(0.0, seconds - (found.queue_ms + found.tokenize_ms + found.run_ms) / 1e3))
        return Embedded(answer=found, model=card.name, characters=sum(map(len, texts)), seconds=seconds)

    async def card(self, wished: Wishes | None = None) -> ModelCard:
        """The pool's model. Without wishes, for a route that has none."""
        timeout_s = STATUS_S if wished is None else wished.deadline_at - time.monotonic()
        return await self.pool.model(timeout_s=timeout_s)

    async def status(self) -> dict[str, Any]:
        """The pool's status (docs/protocol.md). Raises TimedOut or NotRunning where it does not answer."""
        found: dict[str, Any] = json.loads(await self.pool.status(timeout_s=STATUS_S))
        return found

    async def probe(self) -> dict[str, Any]:
        """The pool's status, {} where it does not answer."""
        try:
            return await self.status()
        except EmbedpoolError:
            return {}

    def is_served(self, asked: str, card: ModelCard) -> bool:
        """Whether a request for this model means the pool's. "" asks for any."""
        names = (card.name, *self.options.aliases)
        return asked == "" or "*" in names or any(is_same_model(asked, name) for name in names)


async def _hung_up(request: Request) -> None:
    """Returns when the client is gone. The body has been read, so nothing else is to come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
