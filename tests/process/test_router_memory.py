"""What the router keeps in memory does not follow the largest messages that peers have sent."""

from __future__ import annotations

import threading

import pytest

from embedpool import Client, Pool
from embedpool.errors import TooLarge
from embedpool.memory import rollup
from tests.support import router_of, wait_until

LARGE = "x" * 12_000_000  # below max_request_bytes, above max_text_chars: read, decoded and refused
AT_ONCE, ROUNDS, MOST_MB = 4, 5, 4.0


def _ask_for_too_much(endpoint: str) -> None:
    with Client(endpoint, segment_bytes=0) as client, pytest.raises(TooLarge):
        client.embed([LARGE], timeout_s=30)


def _anonymous_mb(pid: int) -> float:
    return rollup(pid)["Pss_Anon"] / 1e6


def test_large_messages_leave_nothing_with_the_router() -> None:
    """No large block is kept, and no end of a heap that is as large as several of them."""
    with Pool("echo", workers=1) as pool:
        pool.embed(["a text"])
        router = router_of(pool.pid)
        before = _anonymous_mb(router)
        for _ in range(ROUNDS):
            clients = [threading.Thread(target=_ask_for_too_much, args=(pool.endpoint,)) for _ in range(AT_ONCE)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        wait_until(lambda: _anonymous_mb(router) - before < MOST_MB, 5.0, f"no more than {MOST_MB} MB kept")
