"""AkiDB's gRPC without processes: its messages against protoc's, its statuses, and that nobody pays for it who does not ask."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from embedpool import errors
from embedpool.client import AsyncClient
from embedpool.client.core import Answer
from embedpool.errors import BY_CODE, EmbedpoolError
from embedpool.gateway import grpc_akidb
from embedpool.gateway.address import reserve, where
from embedpool.gateway.akidb_messages import described, embed_response, read_embed
from embedpool.gateway.options import Options
from embedpool.gateway.service import Embedded, Service
from tests.gateway import FakePool
from tests.rpc import compiled, embed_request, messages, stub
from tests.support import same


def call(pool: FakePool, texts: list[str], options: Options | None = None, method: str = "embed", **more: Any) -> Any:
    """One request of a real client to a server in this process."""

    async def go() -> Any:
        held = reserve("127.0.0.1", 0)
        try:
            service = Service(cast(AsyncClient, pool), options or Options())
            async with grpc_akidb.serving(where(held), service):
                return await asyncio.to_thread(ask, where(held))
        finally:
            held.close()

    def ask(address: str) -> Any:
        with stub(address) as client:
            request = embed_request(texts) if method == "embed" else messages()["GetModelInfoRequest"]()
            return getattr(client, method)(request, timeout=10, **more)

    return asyncio.run(go())


def refused(*arguments: Any, **more: Any) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **more)
    return cast(grpc.Call, caught.value)


def test_the_page_for_those_who_write_clients_is_what_is_served() -> None:
    page, ours = compiled(), described()
    for message in page.message_type:
        for field in message.field:
            field.ClearField("json_name")  # protoc's own addition
    page.ClearField("service")  # its methods are called below
    assert page == ours


@given(data=st.binary(max_size=64))
def test_any_bytes_are_a_request_or_a_bad_one(data: bytes) -> None:
    with contextlib.suppress(errors.BadRequest):
        assert isinstance(read_embed(data).texts, list)


def test_a_request_is_read_as_protobuf_writes_it() -> None:
    asked = read_embed(embed_request(["a", "é"], model="m", pooling="cls", normalize=False).SerializeToString())
    assert (asked.texts, asked.model) == (["a", "é"], "m")
    assert read_embed(embed_request(["a"]).SerializeToString()).model is None


@pytest.mark.parametrize("dim", [1, 31, 32, 768, 65_536])
def test_rows_of_any_dimension_arrive_bit_by_bit(dim: int) -> None:
    vectors = np.random.default_rng(dim).standard_normal((3, dim)).astype(np.float32)[:, ::-1]  # not contiguous
    found = Embedded(answer=Answer(vectors, 0, ""), model="m", characters=0, seconds=0.0015)
    data = embed_response(read_embed(b""), ["12345678", "", ""], found)
    answer = messages()["EmbedResponse"].FromString(data)
    assert np.array_equal(np.array([row.values for row in answer.embeddings], np.float32), vectors)
    assert (answer.dimension, answer.usage.total_tokens, answer.usage.duration_ms) == (dim, 3, 2)


def test_an_answer_is_the_pools_with_akidbs_members() -> None:
    answer = call(FakePool(), ["a text", "another"])
    assert same(np.array([row.values for row in answer.embeddings], np.float32), ["a text", "another"])
    assert (answer.model, answer.dimension) == ("echo:384", 384)
    found = call(FakePool(), [], method="model_info")
    assert (found.model, found.dimension, found.max_tokens) == ("echo:384", 384, 512)


@pytest.mark.parametrize(
    ("texts", "text"), [([], "texts cannot be empty"), (["a"] * 33, "Maximum 32 texts per request")], ids=["none", "33"]
)
def test_akidbs_two_mistakes_have_its_words(texts: list[str], text: str) -> None:
    error = refused(FakePool(), texts)
    assert (error.code(), error.details()) == (StatusCode.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.TextTooLong("long"), StatusCode.INVALID_ARGUMENT),
        (errors.UnknownModel("none"), StatusCode.NOT_FOUND),
        (errors.Overloaded("full", retry_after_ms=1200), StatusCode.RESOURCE_EXHAUSTED),
        (errors.NotRunning("nobody"), StatusCode.UNAVAILABLE),
        (errors.Draining("ends"), StatusCode.UNAVAILABLE),
        (errors.VersionMismatch("of the pool"), StatusCode.UNAVAILABLE),
        (errors.TimedOut("late"), StatusCode.DEADLINE_EXCEEDED),
        (errors.EncodeFailed("no numbers"), StatusCode.INTERNAL),
        (ZeroDivisionError("a secret"), StatusCode.INTERNAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_is_a_status(error: Exception, status: StatusCode) -> None:
    found = refused(FakePool(error), ["a"])
    assert found.code() is status
    assert "secret" not in (found.details() or "")
    if isinstance(error, errors.Overloaded):
        assert ("grpc-retry-pushback-ms", "1200") in list(found.trailing_metadata())
        assert found.details() == "Embedding failed: full"


def test_every_error_has_a_status() -> None:
    kinds: set[type[EmbedpoolError]] = {EmbedpoolError, *BY_CODE.values()}
    assert [kind.code for kind in kinds if kind.http_status not in grpc_akidb.STATUS] == []


def test_a_key_is_asked_for_over_grpc_too() -> None:
    pool, options = FakePool(), Options(keys=("first", "second"))
    for method in ("embed", "model_info"):
        assert refused(pool, ["a"], options, method).code() is StatusCode.UNAUTHENTICATED
        wrong = (("authorization", "Bearer third"),)
        assert refused(pool, ["a"], options, method, metadata=wrong).code() is StatusCode.UNAUTHENTICATED
    assert pool.calls == 0
    assert call(pool, ["a"], options, metadata=(("authorization", "Bearer second"),)).dimension == 384


def test_deadline_priority_and_prompt_reach_the_pool() -> None:
    pool = FakePool()
    call(pool, ["a"])
    assert 5.0 < pool.asked["timeout_s"] <= 11.0, "the client's own 10 s, by a clock that is not quite ours"
    wishes = (("x-embedpool-priority", "bulk"), ("x-embedpool-prompt-name", "query"), ("x-embedpool-timeout-ms", "2000"))
    call(pool, ["a"], metadata=wishes)
    assert pool.asked["timeout_s"] <= 2.0
    assert (pool.asked["priority"], pool.asked["prompt_name"]) == ("bulk", "query")
    assert refused(pool, ["a"], metadata=(("x-embedpool-priority", "now"),)).code() is StatusCode.INVALID_ARGUMENT


def test_a_deadline_is_at_most_what_the_gateway_allows() -> None:
    pool = FakePool()
    call(pool, ["a"], Options(timeout_s=1.0, max_timeout_s=3.0))
    assert pool.asked["timeout_s"] <= 3.0


def test_a_gateway_without_grpc_loads_neither_grpc_nor_protobuf() -> None:
    code = "import sys, embedpool.gateway.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "embedpool.gateway.app" in loaded
    assert not loaded & {"grpc", "google.protobuf", "embedpool.gateway.grpc_akidb"}
