"""What the dialects share: the pool behind them, asked once per request, and given up when the client hangs up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from embedpool.client import AsyncClient
from embedpool.client.arena import Vectors
from embedpool.client.documents import Keywords
from embedpool.errors import Cancelled, EmbedpoolError
from embedpool.gateway.metrics import Metrics
from embedpool.gateway.options import Options
from embedpool.gateway.reading import HUNG_UP, Wishes
from embedpool.naming import is_same_model
from embedpool.protocol import ModelCard, Truncate

STATUS_S = 1.0  # a probe wants a verdict, not patience
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """float32[texts, dim] and what is known of how it came to be. `seconds`: from asking the pool to its answer."""

    vectors: Vectors
    model: str
    fingerprint: str
    tokens: int
    characters: int
    seconds: float


class Service:
    """One per gateway. `pool` is closed by whoever made it."""

    def __init__(self, pool: AsyncClient, options: Options) -> None:
        self.pool = pool
        self.options = options
        self.metrics = Metrics()

    async def embed(
        self,
        request: Request,
        wishes: Wishes,
        texts: Sequence[str],
        *,
        dim: int = 0,
        normalize: bool = True,
        truncate: Truncate = True,
    ) -> Embedded:
        """The texts' vectors. Raises what AsyncClient.embed does; Cancelled when the client hangs up first."""
        self.metrics.texts.observe(len(texts))
        began_at = time.perf_counter()
        card = await self.pool.model(timeout_s=wishes.timeout_s)
        keywords: Keywords = {**wishes.keywords, "dim": dim, "normalize": normalize, "truncate": truncate}
        asked = self.pool.answer(texts, timeout_s=wishes.timeout_s, **keywords)
        found = await self._unless_hung_up(request, asked)
        self.metrics.tokens.inc(found.tokens)
        return Embedded(
            vectors=found.vectors,
            model=card.name,
            fingerprint=found.fingerprint,
            tokens=found.tokens,
            characters=sum(map(len, texts)),
            seconds=time.perf_counter() - began_at,
        )

    async def _unless_hung_up(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """What the work gives. Ends it, and with it the pool's work, when the client is gone."""
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

    async def card(self) -> ModelCard:
        """The pool's model."""
        return await self.pool.model(timeout_s=self.options.timeout_s)

    def is_served(self, asked: str, card: ModelCard) -> bool:
        """Whether a request for this model means the pool's. "" asks for any."""
        names = (card.name, *self.options.aliases)
        return asked == "" or "*" in names or any(is_same_model(asked, name) for name in names)


async def _hung_up(request: Request) -> None:
    """Returns when the client is gone. The body has been read, so nothing else is to come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
