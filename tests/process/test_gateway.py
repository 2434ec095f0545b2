"""The gateway as a process in front of a real pool: real HTTP, the clients that people have, and everything that ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient, close_session
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI, OpenAI

from tests.gateway import Gateway, gateway
from tests.support import Server, alive, expected, kill, read_line, router_of, same, segments, serving, wait_until, workers_of
from tests.unit.test_gateway_fuzz import COMMON, FIELDS, JSON, check

DEEP = "What is Deep Learning?"
DEEP_MINILM = (-0.077885, -0.033265, 0.019733, 0.007262, -0.0156, -0.022034, -0.030759, -0.009298)


@pytest.fixture(scope="module")
def echo() -> Iterator[Gateway]:
    with serving() as server, gateway(server.endpoint) as found:
        yield found


@pytest.fixture(scope="module")
def minilm() -> Iterator[Gateway]:
    with serving(model="minilm") as server, gateway(server.endpoint) as found:
        yield found


def client_of(found: Gateway, **more: object) -> OpenAI:
    return OpenAI(base_url=f"{found.url}/v1", api_key="none", **{"max_retries": 0, **more})  # type: ignore[arg-type]


# ── clients that people have ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", [None, "float", "base64"])
def test_openais_client_gets_the_models_vectors(minilm: Gateway, form: str | None) -> None:
    with client_of(minilm) as client:
        more = {} if form is None else {"encoding_format": form}
        found = client.embeddings.create(input=[DEEP, "another"], model="all-MiniLM-L6-v2", **more)  # type: ignore[arg-type]
    first = found.data[0].embedding
    if form == "base64":
        assert isinstance(first, str)
        return
    assert np.allclose(first[:8], DEEP_MINILM, atol=4e-3)
    assert [row.index for row in found.data] == [0, 1]
    assert found.usage.prompt_tokens == found.usage.total_tokens > 2
    assert found.model == "all-MiniLM-L6-v2"


def test_openais_client_gets_the_same_in_every_form(echo: Gateway) -> None:
    with client_of(echo) as client:
        as_bytes = client.embeddings.create(input="a text", model="echo:384")
        as_numbers = client.embeddings.create(input="a text", model="echo:384", encoding_format="float")
        short = client.embeddings.create(input="a text", model="echo:384", dimensions=16)
        assert client.models.list().data[0].id == "echo:384"
        assert client.models.retrieve("echo:384").id == "echo:384"
    exact = expected(["a text"])[0]
    assert np.array_equal(np.array(as_bytes.data[0].embedding, np.float32), np.array(as_numbers.data[0].embedding, np.float32))
    assert np.allclose(as_numbers.data[0].embedding, exact, atol=1e-6)
    assert np.allclose(short.data[0].embedding, expected(["a text"], 16)[0], atol=1e-6)


def test_openais_asynchronous_client_asks_many_at_once(echo: Gateway) -> None:
    async def go() -> list[np.ndarray]:
        async with AsyncOpenAI(base_url=f"{echo.url}/v1", api_key="none", max_retries=0) as client:
            asked = [client.embeddings.create(input=f"text {i}", model="echo:384") for i in range(40)]
            return [np.array(found.data[0].embedding) for found in await asyncio.gather(*asked)]

    for i, vector in enumerate(asyncio.run(go())):
        assert np.allclose(vector, expected([f"text {i}"])[0], atol=1e-6)


def test_openais_errors_are_the_classes_that_its_users_catch(echo: Gateway) -> None:
    with client_of(echo) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(input="a", model="text-embedding-3-small")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="token ids"):
            client.embeddings.create(input=[1, 2], model="echo:384")
        with pytest.raises(openai.BadRequestError, match="1 to 384"):
            client.embeddings.create(input="a", model="echo:384", dimensions=385)
        with pytest.raises(openai.UnprocessableEntityError, match="1000 tokens, the model reads 512"):
            client.embeddings.create(input="x" * 2000, model="echo:384", extra_body={"truncate": False})


def test_a_key_is_asked_for_and_taken_from_openais_client(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    with serving() as server, gateway(server.endpoint, "--api-key-file", str(tmp_path / "keys")) as found:
        with client_of(found) as stranger, pytest.raises(openai.AuthenticationError):
            stranger.embeddings.create(input="a", model="echo:384")
        with OpenAI(base_url=f"{found.url}/v1", api_key="secret") as client:
            assert len(client.embeddings.create(input="a", model="echo:384").data) == 1
        assert found.get("/health").status_code == 200


def test_openais_client_is_told_429_and_succeeds_by_trying_again() -> None:
    with (
        serving() as server,
        gateway(server.endpoint, "--max-concurrent-requests=1") as found,
        socket.create_connection(found.address) as holder,
        client_of(found) as client,
    ):
        # The head of a request takes the one place; its body does not come.
        holder.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n")
        wait_until(lambda: found.number("embedpool_gateway_requests_open") == 2, 5.0)
        with pytest.raises(openai.RateLimitError):
            client.embeddings.create(input="a", model="echo:384")
        patient = client.with_options(max_retries=8)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(patient.embeddings.create(input="a", model="echo:384")))
        asking.start()
        refused = 'embedpool_gateway_requests_total{route="/v1/embeddings",status="429"}'
        wait_until(lambda: found.number(refused) >= 2, 10.0)
        holder.close()
        asking.join(30.0)
        assert len(answers) == 1


WRK = """
local n = 0
request = function()
  n = n + 1
  return wrk.format("POST", "/v1/embeddings", nil, '{"input": "text ' .. n .. '", "model": "echo:384"}')
end
wrk.headers["Content-Type"] = "application/json"
done = function(summary)
  local e = summary.errors
  print(string.format("sums %d %d %d %d %d %d", summary.requests, e.connect, e.read, e.write, e.status, e.timeout))
end
"""


def test_wrk_gets_an_answer_to_every_request_of_its_load(echo: Gateway, tmp_path: Path) -> None:
    wrk = shutil.which("wrk")
    if wrk is None:
        pytest.skip("load by somebody else's program: no wrk here")
    (tmp_path / "ask.lua").write_text(WRK)
    command = [wrk, "-t2", "-c32", "-d2s", "--timeout", "20s", "-s", str(tmp_path / "ask.lua"), echo.url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    requests, *failed = map(int, said.rpartition("sums ")[2].split())
    assert requests > 200
    assert failed == [0, 0, 0, 0, 0], said


@pytest.mark.parametrize("path", ["", "/embed"])
def test_hugging_faces_client_extracts_features(minilm: Gateway, path: str) -> None:
    client = InferenceClient(model=minilm.url + path)
    try:
        found = client.feature_extraction(DEEP)
        more = client.feature_extraction("a text", normalize=True, truncate=True, truncation_direction="left")
    finally:
        close_session()  # the package keeps one connection for all its clients
    assert found.shape == (1, 384)
    assert found.dtype == np.float32
    assert np.allclose(found[0, :8], DEEP_MINILM, atol=4e-3)
    assert np.isclose(np.linalg.norm(more), 1.0, atol=1e-5)


def test_akidb_gets_from_either_of_its_routes_what_it_insists_on(minilm: Gateway) -> None:
    old = minilm.post("/api/v1/embed", {"texts": [DEEP], "model": "m"}).json()
    new = minilm.post("/v1/embeddings", {"input": [DEEP], "model": "all-MiniLM-L6-v2", "encoding_format": "float"}).json()
    assert np.allclose(old["embeddings"][0][:8], DEEP_MINILM, atol=4e-3)
    assert old["embeddings"][0] == new["data"][0]["embedding"]
    assert [row["index"] for row in new["data"]] == [0]
    assert all(type(new["usage"][name]) is int for name in ("prompt_tokens", "total_tokens"))
    assert np.isfinite(new["data"][0]["embedding"]).all()


def test_similarity_of_a_real_model_makes_sense(minilm: Gateway) -> None:
    inputs = {"source_sentence": "Which planet is red?", "sentences": ["Mars is called the red planet.", "Bread is baked."]}
    near, far = minilm.post("/similarity", {"inputs": inputs}).json()
    assert near > 0.6 > 0.2 > far


# ── what a pool says, through HTTP ───────────────────────────────────────────────────────────────────────────────────


def test_tokens_prompts_and_limits_are_the_pools_own(echo: Gateway) -> None:
    answer = echo.post("/embed", {"inputs": "abcd", "prompt_name": "query"})
    assert np.allclose(answer.json(), expected(["query: abcd"]), atol=1e-6)
    assert answer.headers["x-compute-tokens"] == str((len("query: abcd") + 1) // 2)
    wrong = echo.post("/embed", {"inputs": "a", "prompt_name": "nope"})
    assert (wrong.status_code, wrong.json()["error_type"]) == (422, "Validation")
    long = echo.post("/embed", {"inputs": "x" * 2000, "truncate": False})
    assert long.json()["error"] == "Input validation error: `inputs` must have less than 512 tokens. Given: 1000"
    late = echo.post("/embed", {"inputs": "a"}, headers={"x-embedpool-timeout-ms": "0.000001"})
    assert late.status_code in (429, 504)  # refused at once for what cannot be done in time, or too late


def test_large_requests_come_whole_and_in_order(echo: Gateway) -> None:
    texts = [f"text {i}" for i in range(2048)]
    answer = echo.post("/v1/embeddings", {"input": texts}, headers={"accept": "application/octet-stream"})
    assert answer.headers["x-embedpool-shape"] == "2048,384"
    assert same(np.frombuffer(answer.content, "<f4").reshape(2048, 384), texts)


def test_a_client_that_hangs_up_ends_its_work_in_the_pool() -> None:
    with serving() as server, gateway(server.endpoint) as found:
        assert found.post("/embed", {"inputs": "a"}).status_code == 200
        stopped = workers_of(server.pid)
        for pid in stopped:
            kill(pid, signal.SIGSTOP)
        try:
            with socket.create_connection(found.address) as sock:
                sock.sendall(_whole("/embed", b'{"inputs":"a text"}'))
                wait_until(lambda: found.number("embedpool_requests_open") == 1, 5.0)
            wait_until(lambda: found.number("embedpool_gateway_hung_up_total") == 1, 5.0)
        finally:
            for pid in stopped:
                kill(pid, signal.SIGCONT)
        wait_until(lambda: found.number("embedpool_requests_open") == 0, 5.0)
        assert found.post("/embed", {"inputs": "a"}).status_code == 200


def test_a_killed_worker_or_router_costs_no_http_client_its_answer() -> None:
    with serving() as server, gateway(server.endpoint) as found:
        answers: list[httpx.Response] = []

        def ask() -> None:
            with httpx.Client(timeout=60.0) as client:
                answers.extend(client.post(f"{found.url}/embed", json={"inputs": f"text {i}"}) for i in range(150))

        asking = [threading.Thread(target=ask) for _ in range(4)]
        for thread in asking:
            thread.start()
        kill(workers_of(server.pid)[0])
        wait_until(lambda: len(answers) > 0 or not asking[0].is_alive(), 30.0)
        kill(router_of(server.pid))
        for thread in asking:
            thread.join(60.0)
        assert [answer.status_code for answer in answers] == [200] * 600


def test_health_follows_the_pool_and_the_gateway_finds_the_next_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    del tmp_path_factory
    with serving() as first, gateway(first.endpoint) as found:
        assert found.get("/health").status_code == 200
        first.stop()
        assert found.get("/health").status_code == 503
        assert found.post("/embed", {"inputs": "a"}, headers={"x-embedpool-timeout-ms": "200"}).status_code in (503, 504)
        with serving(runtime_dir=first.runtime_dir):
            wait_until(lambda: found.get("/health").status_code == 200, 15.0)
            assert found.post("/embed", {"inputs": "a"}).status_code == 200


# ── what peers do to a socket ────────────────────────────────────────────────────────────────────────────────────────


def _whole(path: str, body: bytes) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )


def _said(found: Gateway, sent: bytes, within_s: float = 20.0) -> bytes:
    """What a connection gets until it is closed, or for its first answer."""
    with socket.create_connection(found.address, timeout=within_s) as sock:
        try:
            sock.sendall(sent)
            answer = sock.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            return b""
        return answer


def test_an_endless_head_is_hung_up_on(echo: Gateway) -> None:
    assert _said(echo, b"GET /health HTTP/1.1\r\nx: " + b"a" * (1 << 20)) == b""
    assert _said(echo, b"GET /health HTTP/1.1\r\n" + b"".join(b"x-%d: a\r\n" % i for i in range(20_000))) == b""


def test_a_head_that_does_not_come_is_hung_up_on_and_others_are_served_meanwhile() -> None:
    with (
        serving() as server,
        gateway(server.endpoint, "--receive-timeout-s=0.5") as found,
        socket.create_connection(found.address, timeout=5.0) as slow,
        socket.create_connection(found.address, timeout=5.0) as mute,
    ):
        slow.sendall(b"GET /health HTTP/1.1\r\nx: ")
        assert found.get("/health").status_code == 200
        for sock in (slow, mute):
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""


def test_requests_behind_each_other_on_one_connection_are_answered_in_order(echo: Gateway) -> None:
    with socket.create_connection(echo.address, timeout=10.0) as sock, sock.makefile("rb") as answers:
        sock.sendall(b"".join(_whole("/v1/embeddings", json.dumps({"input": "a", "dimensions": n}).encode()) for n in (3, 5)))
        for n in (3, 5):
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            size = 0
            while (line := answers.readline()) != b"\r\n":
                if line.startswith(b"content-length:"):
                    size = int(line.split()[1])
            assert len(json.loads(answers.read(size))["data"][0]["embedding"]) == n


@pytest.mark.parametrize("path", FIELDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_body_makes_a_real_gateway_answer_500(echo: Gateway, path: str, data: st.DataObject) -> None:
    body = data.draw(st.fixed_dictionaries({}, optional={**FIELDS[path], **COMMON}) | JSON)
    headers = {"content-type": "application/json", "x-embedpool-timeout-ms": "5000"}
    answer = httpx.post(echo.url + path, content=json.dumps(body).encode(), headers=headers, timeout=30.0)
    if answer.status_code == 504:  # a drawn deadline of next to nothing
        assert isinstance(body, dict) and body.get("timeout_ms") is not None
    else:
        check(path, answer)


# ── beginning and end ────────────────────────────────────────────────────────────────────────────────────────────────


def _start(server: Server, *flags: str, inherit: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "embedpool.gateway", "--endpoint", server.endpoint, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=inherit)


def test_an_open_address_without_keys_is_warned_of() -> None:
    with serving() as server, _start(server, "--listen", "0.0.0.0:0") as process:
        assert "listens on http://0.0.0.0:" in read_line(process, 20.0)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=15)
        assert "reachable from other machines" in said
        assert "--api-key-file" in said


def test_a_port_that_is_taken_is_one_sentence_and_status_2(echo: Gateway) -> None:
    host, port = echo.address
    command = [sys.executable, "-P", "-m", "embedpool.gateway", "--listen", f"{host}:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr == f"embedpool gateway: cannot listen on {host}:{port}: Address already in use\n"


def test_a_gateway_ends_with_whoever_holds_its_lifeline() -> None:
    with serving() as server:
        theirs, ours = os.pipe()
        process = _start(server, "--listen", "127.0.0.1:0", "--lifeline", str(theirs), inherit=(theirs,))
        os.close(theirs)
        with process:
            assert read_line(process, 20.0)
            os.close(ours)
            assert process.wait(5) == 0
        assert not alive(process.pid)


def test_sigkill_of_a_gateway_leaves_no_session() -> None:
    with serving() as server, gateway(server.endpoint) as found:
        assert found.post("/embed", {"inputs": "a"}).status_code == 200
        assert segments(server) == 1
        kill(found.process.pid)
        found.process.wait(5)
        wait_until(lambda: segments(server) == 0, 5.0)


def test_what_was_accepted_before_sigterm_is_answered() -> None:
    with serving() as server, gateway(server.endpoint) as found:
        stopped = workers_of(server.pid)
        for pid in stopped:
            kill(pid, signal.SIGSTOP)
        with socket.create_connection(found.address, timeout=20.0) as sock:
            sock.sendall(_whole("/embed", b'{"inputs":"a text"}'))
            wait_until(lambda: found.number("embedpool_requests_open") == 1, 5.0)
            found.process.send_signal(signal.SIGTERM)
            for pid in stopped:
                kill(pid, signal.SIGCONT)
            assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert found.process.wait(15) == 0
