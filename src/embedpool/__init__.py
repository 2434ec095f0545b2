"""embedpool: a pool of worker processes that serves text embeddings to programs of the same machine.

The data path, which is also the order in which to read the code:

1. client.core.ClientCore.ask       picks room in the session's segment, encodes one `embed` message with a time budget
2. router.server.Server.run         frames to validated messages to events for the core
3. router.core.Core.handle          admits or refuses at once, cuts rows into jobs by estimated cost, picks a worker
4. worker.job.run_job               tokenises, forms micro-batches of like length, runs the session
5. shm.segment.WriteMap.room        where the worker writes each row: its place in the client's segment
6. router.core.Core.handle          all jobs of a request done: one `vectors` message, no vector inside it
7. client.core.ClientCore.received  an array over the client's own mapping; the room is free when it is collected
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedpool.client import AsyncClient, Client
    from embedpool.errors import EmbedpoolError
    from embedpool.pool import Pool
    from embedpool.shm.rows import dequantized

__all__ = ["AsyncClient", "Client", "EmbedpoolError", "Pool", "__version__", "dequantized"]

__version__ = version("embedpool")

_PLACES = {
    "AsyncClient": "embedpool.client",
    "Client": "embedpool.client",
    "EmbedpoolError": "embedpool.errors",
    "Pool": "embedpool.pool",
    "dequantized": "embedpool.shm.rows",
}


def __getattr__(name: str) -> Any:
    """Public names on first use: the supervisor imports this package without numpy and ZeroMQ."""
    if name not in _PLACES:
        raise AttributeError(f"module 'embedpool' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
