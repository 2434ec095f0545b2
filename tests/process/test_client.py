"""What a Python program sees of a pool: shapes, errors, views, threads, forks, and the ways in which vectors come."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedpool import AsyncClient, Client, Pool, errors
from embedpool.config import SOCKET
from tests.support import expected, same, serving


def test_embed_gives_a_read_only_view_with_one_row_per_text() -> None:
    with Pool("echo", workers=1) as pool:
        found = pool.embed(["a text", "another"])
        assert found.dtype == np.float32
        assert same(found, ["a text", "another"])
        assert not found.flags.writeable
        assert not found.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            found[0, 0] = 1.0


def test_a_query_is_one_vector_with_the_query_prompt() -> None:
    with Pool("echo", workers=1) as pool:
        found = pool.embed_query("red planet")
        assert found.shape == (384,)
        assert np.allclose(found, expected(["query: red planet"])[0], atol=1e-6)
        assert np.allclose(pool.embed_query("red planet", prompt_name="document"), expected(["red planet"])[0], atol=1e-6)


def test_an_answer_tells_tokens_and_where_the_time_went() -> None:
    with Pool("echo", workers=1) as client:
        began = time.monotonic()
        found = client.answer(["one text", "another"])
        took_ms = (time.monotonic() - began) * 1e3
    assert same(found.vectors, ["one text", "another"])
    assert found.tokens > 0 and found.fingerprint.startswith("echo")
    assert found.tokenize_ms > 0.0 and found.run_ms > 0.0 and found.queue_ms >= 0.0
    assert found.queue_ms + found.tokenize_ms + found.run_ms <= took_ms


def test_documents_of_any_number_keep_their_order() -> None:
    texts = [f"document {i} " + "x" * (i * 7 % 300) for i in range(5000)]
    with Pool("echo", workers=2) as pool:
        assert same(pool.embed_documents(texts), texts)
        assert same(pool.embed_documents(iter(texts[:1])), texts[:1])
        assert pool.embed_documents([]).shape == (0, 384)


def test_documents_that_do_not_fit_into_the_segment_are_copied() -> None:
    texts = [f"document {i}" for i in range(3000)]
    with Pool("echo", workers=2, segment_bytes=1 << 20) as pool:
        assert same(pool.embed_documents(texts), texts)


def test_dim_cuts_and_normalises_again() -> None:
    with Pool("echo", workers=1) as pool:
        found = pool.embed(["a text"], dim=16)
        assert found.shape == (1, 16)
        assert np.allclose(found, expected(["a text"], 16), atol=1e-6)
        raw = pool.embed(["a text"], normalize=False)
        assert not np.isclose(np.linalg.norm(raw), 1.0, atol=1e-3)
        assert np.allclose(raw[0] / np.linalg.norm(raw[0]), expected(["a text"])[0], atol=1e-6)


def test_views_stay_valid_after_close_and_their_room_is_used_again_when_they_are_gone() -> None:
    with Pool("echo", workers=1, segment_bytes=64 << 10) as pool:
        kept = pool.embed(["kept"])
        row = pool.embed(["one", "two"])[1]  # a view of a view keeps its room too
        for i in range(2000):
            assert same(pool.embed([f"text {i}"]), [f"text {i}"])
        assert pool._core.arena is not None
        assert pool._core.arena.taken_bytes <= 3 * 2 * 384 * 4
    gc.collect()
    assert same(kept, ["kept"])
    assert np.allclose(row, expected(["two"])[0], atol=1e-6)


def test_a_segment_full_of_held_arrays_makes_copies_instead_of_failing() -> None:
    with Pool("echo", workers=1, segment_bytes=64 << 10) as pool:
        held = [pool.embed([f"text {i}"]) for i in range(200)]
        assert all(same(array, [f"text {i}"]) for i, array in enumerate(held))
        assert held[0].base is not None
        assert sum(isinstance(array.base.base, bytes) for array in held if array.base is not None) > 100


@pytest.mark.parametrize(
    ("texts", "keywords", "error", "names"),
    [
        (["good", 7], {}, errors.BadText, "text 1 "),
        (["good", None], {}, errors.BadText, "text 1 "),
        ([b"bytes"], {}, errors.BadText, "text 0 "),
        (["good", "lone \ud800 surrogate"], {}, errors.BadText, "text 1 "),
        ("one string", {}, errors.BadRequest, "list of strings"),
        (["x" * 2000, "short"], {"truncate": False}, errors.TextTooLong, "text 0 "),
        (["short", "x" * 2000], {"truncate": False}, errors.TextTooLong, "text 1 "),
        (["x"] * 9000, {}, errors.TooLarge, "embed_documents"),
        (["x" * 1_000_001], {}, errors.TooLarge, "text 0 "),
        (["x" * 999_999] * 20, {}, errors.TooLarge, "bytes"),
        (["x"], {"model": "other"}, errors.UnknownModel, "echo:384"),
        (["x"], {"prompt_name": "nonsense"}, errors.UnknownPrompt, "query, document"),
        (["x"], {"dim": 385}, errors.BadDimension, "384"),
        (["x"], {"dim": -1}, errors.BadRequest, "dim"),
        (["x"], {"priority": "high"}, errors.BadRequest, "priority"),
        (["x"], {"nonsense": 1}, errors.BadRequest, "nonsense"),
    ],
)
def test_bad_input_is_refused_with_its_reason_and_the_pool_goes_on(
    shared: Pool, texts: list[str], keywords: dict[str, object], error: type[Exception], names: str
) -> None:
    with pytest.raises(error, match=names):
        shared.embed(texts, **keywords)  # type: ignore[arg-type]
    assert same(shared.embed(["after"]), ["after"])


@pytest.fixture(scope="module")
def shared() -> Iterator[Pool]:
    """One pool for the table above."""
    with Pool("echo", workers=1) as pool:
        pool.embed(["warm"])
        yield pool


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["nul \0 inside"], ["😀 👩‍👩‍👧‍👦"], ["x" * 100_000]])
def test_odd_but_valid_texts_are_embedded(texts: list[str]) -> None:
    with Pool("echo", workers=1) as pool:
        assert same(pool.embed(texts), texts)


def test_a_row_at_fault_far_into_documents_is_named_by_its_own_number() -> None:
    texts = ["short"] * 1000
    texts[700] = "x" * 2000
    with Pool("echo", workers=1) as pool:
        with pytest.raises(errors.TextTooLong, match="text 700 ") as caught:
            pool.embed_documents(texts, truncate=False)
        assert caught.value.row == 700
        assert same(pool.embed(["after"]), ["after"])


def test_threads_share_a_client_and_each_gets_its_own_rows() -> None:
    wrong: list[str] = []
    with Pool("echo", workers=2) as pool:

        def work(number: int) -> None:
            for i in range(150):
                texts = [f"thread {number} text {i} row {row}" for row in range(i % 4 + 1)]
                if not same(pool.embed(texts), texts):
                    wrong.append(f"{number}/{i}")

        threads = [threading.Thread(target=work, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert not wrong


def test_a_forked_child_and_its_parent_both_go_on() -> None:
    with Pool("echo", workers=1) as pool:
        kept = pool.embed(["before the fork"])
        pid = os.fork()
        if not pid:
            ok = all(same(pool.embed([f"child {i}"]), [f"child {i}"]) for i in range(50))
            os._exit(0 if ok and same(kept, ["before the fork"]) else 1)
        for i in range(50):
            assert same(pool.embed([f"parent {i}"]), [f"parent {i}"])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert same(pool.embed(["after"]), ["after"])
        assert same(kept, ["before the fork"])


def test_a_request_that_cannot_be_done_in_time_is_an_error_in_time() -> None:
    with Pool("echo", workers=1) as pool:
        pool.embed(["warm"])
        began = time.monotonic()
        with pytest.raises((errors.TimedOut, errors.Overloaded)):
            pool.embed(["x" * 5000] * 3000, timeout_s=0.02)
        assert time.monotonic() - began < 2.0
        assert same(pool.embed(["after"]), ["after"])


def test_no_pool_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    nobody = Client(f"ipc://{tmp_path}/{SOCKET}", connect_timeout_s=0.2)
    with nobody as client, pytest.raises(errors.NotRunning, match="embedpool serve"):
        client.embed(["x"])


def test_what_is_no_endpoint_is_one_sentence() -> None:
    with Client("nonsense") as client, pytest.raises(errors.ConfigError, match="'nonsense' cannot be used"):
        client.embed(["x"])


def test_a_closed_client_says_so() -> None:
    pool = Pool("echo", workers=1)
    pool.embed(["x"])
    pool.close()
    pool.close()
    with pytest.raises(errors.Cancelled, match="closed"):
        pool.embed(["x"])


@pytest.mark.parametrize("how", ["no segment", "tcp"])
def test_clients_without_shared_memory_get_inline_vectors(how: str) -> None:
    options = ("--endpoint", "tcp://127.0.0.1:17931") if how == "tcp" else ()
    with serving(*options) as server:
        endpoint = options[1] if options else server.endpoint
        with Client(endpoint, segment_bytes=0 if how == "no segment" else 1 << 20) as client:
            texts = [f"text {i}" for i in range(1000)]
            assert same(client.embed(texts), texts)
            assert same(client.embed_documents(texts), texts)
            assert client._core.arena is None
            assert ("TCP" in client.warning) == (how == "tcp")


def test_too_little_shared_memory_means_inline_vectors_and_a_warning_with_the_reason() -> None:
    with serving("--max-shm-bytes", "1000000") as server, Client(server.endpoint) as client:
        assert same(client.embed(["x"]), ["x"])
        assert "max_shm_bytes" in client.warning


def test_the_asyncio_client_has_the_same_methods() -> None:
    async def main(endpoint: str) -> None:
        async with AsyncClient(endpoint) as client:
            texts = [f"text {i}" for i in range(1500)]
            assert same(await client.embed(texts[:3]), texts[:3])
            assert np.allclose(await client.embed_query("x"), expected(["query: x"])[0], atol=1e-6)
            assert same(await client.embed_documents(texts), texts)
            many = await asyncio.gather(*(client.embed([text]) for text in texts[:300]))
            assert all(same(found, [text]) for found, text in zip(many, texts, strict=False))
            with pytest.raises(errors.BadDimension):
                await client.embed(["x"], dim=1000)
            assert '"serving"' in await client.status()
            task = asyncio.create_task(client.embed(["y" * 900_000] * 15))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert same(await client.embed(["after"]), ["after"])

    with serving() as server:
        asyncio.run(asyncio.wait_for(main(server.endpoint), 60))
