"""Traces of a real pool: what a collector sees, whose trace it is, and what happens when there is none."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import StatusCode, Tracer

from embedpool import AsyncClient, Client, Pool, errors
from tests.collector import Collector, attributes, collecting
from tests.gateway import gateway
from tests.process.test_serve import embedpool
from tests.rpc import embed_request, stub
from tests.support import kill, part, router_of, same, serving, wait_until, workers_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENTS = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.fixture
def tracer() -> Tracer:
    """Of a client that is traced itself; nobody exports its spans."""
    return TracerProvider(shutdown_on_exit=False).get_tracer("client")


def _ids(span: Any) -> tuple[str, str]:
    return span.trace_id.hex(), span.parent_span_id.hex()


def test_a_clients_span_is_the_parent_and_stages_add_up_to_its_request(collector: Collector, tracer: Tracer) -> None:
    with Pool("minilm", workers=1, slice_ms=1000, traces="otlp") as pool:  # one job, however slow the machine is
        pool.embed(["connected"])
        with tracer.start_as_current_span("a search") as mine:
            began_ns = time.time_ns()
            found = pool.answer(["a text", "another one"])
            took_ns = time.time_ns() - began_ns
        context = mine.get_span_context()
        ids = (f"{context.trace_id:032x}", f"{context.span_id:016x}")
        wait_until(lambda: any(_ids(span) == ids for span in collector.named("embedpool.embed")), 10.0, "the span")
    [top] = [span for span in collector.named("embedpool.embed") if _ids(span) == ids]
    inside = collector.inside(top)
    assert [span.name for span in inside] == ["receive", "queue", "tokenize", "run", "deliver"]
    assert inside[0].start_time_unix_nano == top.start_time_unix_nano
    assert inside[-1].end_time_unix_nano == top.end_time_unix_nano
    for before, after in itertools.pairwise(inside):
        assert before.end_time_unix_nano == after.start_time_unix_nano, (before.name, after.name)
    took = {span.name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 for span in (top, *inside)}
    assert took["embedpool.embed"] * 1e6 <= took_ns
    assert began_ns - 1e6 <= top.start_time_unix_nano <= top.end_time_unix_nano <= began_ns + took_ns + 1e6
    assert took["tokenize"] == pytest.approx(found.tokenize_ms, abs=0.01)
    assert took["run"] == pytest.approx(found.run_ms, abs=0.01)
    assert attributes(top) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "embedpool",
        "gen_ai.request.model": "all-MiniLM-L6-v2",
        "gen_ai.usage.input_tokens": found.tokens,
        "gen_ai.embeddings.dimension.count": 384,
        "embedpool.class": "interactive",
        "embedpool.rows": 2,
        "embedpool.jobs": 1,
    }
    assert {resource["service.name"] for resource in collector.resources} == {"embedpool"}


def test_many_texts_show_every_job_and_which_worker_did_it(collector: Collector) -> None:
    with Pool("minilm", workers=2, slice_ms=5, traces="otlp") as pool:
        wait_until(lambda: [w["state"] for w in json.loads(pool.status())["workers"]] == ["idle"] * 2, 10.0, "both workers")
        pool.embed([f"text number {i} of many, long enough to be cut into jobs" for i in range(16)])
        [top] = collector.wait_for(1)
        runs = [span for span in collector.inside(top) if span.name == "run"]
    assert attributes(top)["embedpool.class"] == "bulk"
    assert len(runs) == attributes(top)["embedpool.jobs"] > 2
    assert sum(attributes(run)["embedpool.rows"] for run in runs) == 16
    assert {attributes(run)["embedpool.worker"] for run in runs} == {0, 1}


def test_asynchronous_clients_gateways_and_grpc_pass_their_contexts_on(collector: Collector, tracer: Tracer) -> None:
    async def ask(endpoint: str) -> str:
        async with AsyncClient(endpoint) as client:
            with tracer.start_as_current_span("a task") as mine:
                await client.embed(["a text"])
                return f"{mine.get_span_context().span_id:016x}"

    other = f"00-{'a' * 32}-{'b' * 16}-01"
    with Pool("echo", workers=1, traces="otlp") as pool, gateway(pool.endpoint, "--grpc", "127.0.0.1:0") as http:
        span = asyncio.run(ask(pool.endpoint))
        assert http.post("/embed", {"inputs": ["a", "b"]}, headers={"traceparent": CLIENTS}).status_code == 200
        with stub(http.grpc) as client:
            client.embed(embed_request(["c"]), timeout=10, metadata=(("traceparent", other),))
        tops = collector.wait_for(3)
    assert {top.parent_span_id.hex() for top in tops} == {span, SPAN, "b" * 16}
    [of_http] = [top for top in tops if top.trace_id.hex() == TRACE]
    assert attributes(of_http)["embedpool.rows"] == 2


def test_what_its_client_does_not_record_is_not_recorded_and_a_refusal_is_an_error(collector: Collector) -> None:
    with Pool("echo", workers=1, traces="otlp") as pool:
        pool.embed(["unseen"], traceparent=CLIENTS[:-1] + "0")
        with pytest.raises(errors.TextTooLong):
            pool.embed(["x " * 1000], traceparent=CLIENTS, truncate=False)
        [worker] = workers_of(pool.pid)
        kill(worker, signal.SIGSTOP)
        with Client(pool.endpoint) as other, pytest.raises(errors.TimedOut):
            other.embed(["too late"], timeout_s=0.2, traceparent=CLIENTS)
        wait_until(lambda: json.loads(pool.status())["sessions"]["requests_open"] == 0, 10.0, "the session to end")
        kill(worker, signal.SIGCONT)
        pool.embed(["seen"])
        tops = collector.wait_for(3)
        assert json.loads(pool.status())["traces"] == {"recorded": 3, "dropped": 0}
    outcomes = {attributes(top).get("error.type", ""): top for top in tops}
    assert set(outcomes) == {"too_long", "session_ended", ""}
    assert outcomes["too_long"].status.code == StatusCode.ERROR.value
    assert "text 0 has" in outcomes["too_long"].status.message
    assert outcomes[""].parent_span_id == b""


def test_only_what_clients_record_is_recorded_where_the_sampler_says_so(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vectors")
    with Pool("echo", workers=1, traces="otlp") as pool:
        for i in range(5):
            pool.embed([f"{i}"])
        pool.embed(["a text"], traceparent=CLIENTS)
        [top] = collector.wait_for(1)
        assert json.loads(pool.status())["traces"] == {"recorded": 1, "dropped": 0}
    assert _ids(top) == (TRACE, SPAN)
    assert collector.resources[0]["service.name"] == "vectors"


def test_spans_of_the_last_moment_arrive_before_the_pool_has_ended(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with Pool("echo", workers=1, traces="otlp") as pool:
        pool.embed(["a text"])
    assert len(collector.named("embedpool.embed")) == 1


def test_while_the_collector_is_down_answers_go_on_and_two_lines_tell_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with serving("--traces", "otlp") as server, Client(server.endpoint) as client:
        texts = [f"text {i}" for i in range(400)]
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(lambda text: same(client.embed([text], timeout_s=5.0), [text]), texts))
        lines: list[str] = []
        assert server.process.stderr is not None
        reader = threading.Thread(target=lines.extend, args=(iter(server.process.stderr.readline, ""),))
        reader.start()
        wait_until(lambda: "tracer: traces are lost: " in "".join(lines), 10.0, "a line about it")
        with collecting(port) as found:
            again = "traces are exported again; spans lost"
            wait_until(lambda: same(client.embed(["again"]), ["again"]) and again in "".join(lines), 20.0, "to hear of it")
            assert found.spans
            assert server.stop() == 0
            reader.join(10)
    about = [line for line in lines if "embedpool tracer" in line]
    assert [words in line for words, line in zip(("are lost", "again", "spans lost"), about, strict=True)] == [True] * 3


def test_a_tracer_that_is_killed_is_replaced_and_costs_no_answer(collector: Collector) -> None:
    with Pool("echo", workers=1, traces="otlp") as pool:
        wait_until(lambda: len(part(pool.pid, "embedpool.traces")) == 1, 10.0, "the tracer")
        [before] = part(pool.pid, "embedpool.traces")
        pool.embed(["one"])
        collector.wait_for(1)
        kill(before)
        assert same(pool.embed(["two"]), ["two"])
        collector.wait_for(2)
        [after] = part(pool.pid, "embedpool.traces")
        assert after != before
        kill(router_of(pool.pid))
        assert same(pool.embed(["three"], timeout_s=20.0), ["three"])
        collector.wait_for(3)


def test_workers_router_and_supervisor_do_not_load_opentelemetry(collector: Collector) -> None:
    with Pool("echo", workers=1, traces="otlp") as pool:
        pool.embed(["a text"])
        collector.wait_for(1)
        for pid in (pool.pid, router_of(pool.pid), *workers_of(pool.pid)):
            with open(f"/proc/{pid}/maps") as maps:
                assert "_upb" not in maps.read(), "protobuf's library is loaded"


def test_the_console_is_stderr() -> None:
    with serving("--traces", "console") as server, Client(server.endpoint) as client:
        client.embed(["a text"])
        assert server.stop() == 0
        assert server.process.stdout is not None and server.process.stderr is not None
        assert server.process.stdout.read() == ""
        assert '"name": "embedpool.embed"' in server.process.stderr.read()


def test_a_mistake_in_the_settings_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    done = embedpool("serve", "--model", "echo", "--traces", "otlp")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "http/protobuf" in done.stderr
