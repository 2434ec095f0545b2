"""The ASGI application: routes of all dialects over one AsyncClient, and the one boundary where errors become responses.

Rules
1. Whatever a handler raises, the dialect whose route it is says it, with the status of errors.py: nothing that a peer sends is
   a 500.
2. A request that does work takes one of `max_concurrent` places; without one it is refused at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from embedpool.client import AsyncClient
from embedpool.errors import EmbedpoolError, Unavailable, VersionMismatch
from embedpool.gateway import openapi
from embedpool.gateway.akidb import AkiDB
from embedpool.gateway.dialect import Dialect, Endpoint
from embedpool.gateway.openai import OpenAI
from embedpool.gateway.options import Options
from embedpool.gateway.reading import Kind, Unreadable
from embedpool.gateway.service import Service
from embedpool.gateway.tei import TEI

log = logging.getLogger(__name__)
FAULTS: dict[int, Kind] = {404: "path", 405: "method"}
Beside = Callable[[Service], AbstractAsyncContextManager[None]]


def make_app(pool: AsyncClient, options: Options | None = None, beside: Beside | None = None) -> Starlette:
    """The application. It closes the pool's client when it is shut down. `beside`: what else runs over the same service from
    its start to its end, which is gRPC or nothing."""
    options = options or Options()
    service = Service(pool, options)
    dialects: Sequence[Dialect] = (AkiDB(service), OpenAI(service), TEI(service))  # TEI's prefix is that of all others
    boundary = _Boundary(service)
    routes = [
        Route(endpoint.path, boundary.around(dialect, endpoint), methods=[endpoint.method])
        for dialect in dialects
        for endpoint in dialect.endpoints()
    ]
    routes += openapi.routes(dialects, keyed=bool(options.keys))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with beside(service) if beside is not None else nullcontext():
            yield
        await pool.close()

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        dialect = next(each for each in dialects if request.url.path.startswith(each.prefix))
        response = dialect.unreadable(Unreadable(FAULTS.get(error.status_code, "path")))
        response.headers.update(error.headers or {})
        return response

    return Starlette(routes=routes, exception_handlers={HTTPException: no_route}, lifespan=lifespan)


class _Boundary:
    """Around every handler: key, place, time, and errors put into the dialect's words."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def around(self, dialect: Dialect, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        metrics = self.service.metrics

        async def handle(request: Request) -> Response:
            began_at = time.perf_counter()
            with metrics.open.track_inprogress():
                response = await self._response(dialect, endpoint, request)
            metrics.requests.labels(endpoint.path, response.status_code).inc()
            metrics.seconds.labels(endpoint.path).observe(time.perf_counter() - began_at)
            return response

        return handle

    async def _response(self, dialect: Dialect, endpoint: Endpoint, request: Request) -> Response:
        try:
            keys = self.service.keys
            if keys and not endpoint.open and not keys.fit(request.headers.get("authorization", "")):
                raise Unreadable("key")
            return await self._counted(endpoint, request)
        except Unreadable as fault:
            response = dialect.unreadable(fault)
            if fault.kind == "key":
                response.headers["www-authenticate"] = "Bearer"
            if fault.kind in ("large", "slow"):
                response.headers["connection"] = "close"  # the rest of the body is not waited for
            return response
        except VersionMismatch as error:  # between gateway and pool: nothing that the client could mend
            return dialect.refused(Unavailable(f"the gateway cannot use this pool: {error.message}"))
        except EmbedpoolError as error:
            return dialect.refused(error)
        except Exception:
            log.exception("%s %s could not be answered", endpoint.method, endpoint.path)
            return dialect.refused(EmbedpoolError("an internal error: see the gateway's log"))

    async def _counted(self, endpoint: Endpoint, request: Request) -> Response:
        if not endpoint.counted:
            return await endpoint.handler(request)
        with self.service.place():
            return await endpoint.handler(request)
