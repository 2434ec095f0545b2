"""Traces: contexts, what the core notes of requests with virtual times, and the spans made of it. No process, no collector."""

from __future__ import annotations

import logging
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from embedpool.client.ambient import current
from embedpool.client.documents import DEFAULTS, options_of
from embedpool.config import Config, most_waiting_spans, traces_begin_here, traces_protocol
from embedpool.errors import BadRequest, ConfigError
from embedpool.protocol import Done, Embed, Vectors, decode, encode
from embedpool.router.core import Core
from embedpool.router.events import Closed, Finished, Joined, SendJob, Tick
from embedpool.router.outlet import Outlet
from embedpool.router.traces import Trace, Traces
from embedpool.supervise import tracing
from embedpool.traces.context import is_sampled, is_valid, passed_on
from embedpool.traces.exporting import QUIET_S, Counted, Exports, LastWords
from embedpool.traces.records import MOST_JOBS, PACKET_BYTES, PACKET_RECORDS, Record, Work, packets, unpacked
from embedpool.traces.spans import write
from embedpool.traces.stages import stages, whole
from tests.gateway import FakePool, post
from tests.unit.histories import RULES, Player, choose
from tests.unit.test_gateway_grpc import call
from tests.unit.transcript import ALICE, ask, core, joined, play, words

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENTS = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"
STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"

# ── contexts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("traceparent", [CLIENTS, UNSAMPLED, f"00-{TRACE}-{SPAN}-ff", f"01-{TRACE}-{SPAN}-01-more.to-come"])
def test_what_w3c_allows_names_a_span(traceparent: str) -> None:
    assert is_valid(traceparent)
    assert passed_on(traceparent, STATE) == (traceparent, STATE)


@pytest.mark.parametrize(
    "traceparent",
    [
        *("", "00", CLIENTS.upper(), CLIENTS + " ", " " + CLIENTS, CLIENTS + "\n", CLIENTS + "-more", CLIENTS[:-1]),
        *(f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-0g"),
        *(f"01-{TRACE}-{SPAN}-01-é", f"01-{TRACE}-{SPAN}-01more"),
    ],
)
def test_anything_else_names_none_and_is_not_passed_on(traceparent: str) -> None:
    assert not is_valid(traceparent)
    assert passed_on(traceparent, STATE) == ("", "")


def test_the_sampled_flag_is_one_bit_of_eight() -> None:
    assert [flags for flags in range(256) if is_sampled(f"00-{TRACE}-{SPAN}-{flags:02x}")] == list(range(1, 256, 2))


def test_a_state_that_is_too_long_or_no_ascii_is_left_out_alone() -> None:
    assert passed_on(CLIENTS, "a=" + "b" * 510) == (CLIENTS, "a=" + "b" * 510)
    assert passed_on(CLIENTS, "a=" + "b" * 511) == passed_on(CLIENTS, "a=é") == (CLIENTS, "")


# ── from clients ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _inside(flags: int = TraceFlags.SAMPLED) -> Any:
    context = SpanContext(int(TRACE, 16), int(SPAN, 16), False, TraceFlags(flags), TraceState([("a", "1"), ("b", "2")]))
    return trace.use_span(NonRecordingSpan(context))


def test_a_client_asks_within_the_span_that_is_current() -> None:
    assert current() is None
    assert options_of({}) is DEFAULTS
    with _inside():
        assert current() == (CLIENTS, "a=1,b=2")
        made = options_of({"dim": 3})
    assert (made.traceparent, made.tracestate, made.dim) == (CLIENTS, "a=1,b=2", 3)
    with _inside(TraceFlags.DEFAULT):
        assert options_of({}).traceparent == UNSAMPLED


def test_a_program_without_opentelemetry_is_not_made_to_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with _inside():
        monkeypatch.delitem(sys.modules, "opentelemetry.trace")
        assert current() is None
        monkeypatch.setitem(sys.modules, "opentelemetry.trace", object())  # as while it is being imported
        assert current() is None


def test_a_context_that_is_said_goes_before_the_current_one() -> None:
    other = f"00-{'a' * 32}-{'b' * 16}-01"
    with _inside():
        made = options_of({"traceparent": other})
        none = options_of({"traceparent": "nonsense", "tracestate": STATE})
    assert (made.traceparent, made.tracestate) == (other, "")
    assert (none.traceparent, none.tracestate) == ("", "")
    with pytest.raises(BadRequest, match="traceparent"):
        options_of({"traceparent": None})  # type: ignore[typeddict-item]


def test_the_message_carries_both_and_says_nothing_where_there_is_none() -> None:
    asked = Embed(1, ("a",), traceparent=CLIENTS, tracestate=STATE)
    assert decode(encode(asked)) == asked
    assert b"trace" not in encode(Embed(1, ("a",)))


def test_a_gateway_passes_on_what_http_clients_send() -> None:
    pool = FakePool()
    for path, body in (("/embed", {"inputs": "a"}), ("/v1/embeddings", {"input": "a"}), ("/api/v1/embed", {"texts": ["a"]})):
        assert post(path, body, pool, traceparent=CLIENTS, tracestate=STATE).status_code == 200
        assert (pool.asked["traceparent"], pool.asked["tracestate"]) == (CLIENTS, STATE)
        assert post(path, body, pool, traceparent="nonsense").status_code == 200
        assert "traceparent" not in pool.asked
        with _inside():  # a gateway that is traced itself: the client takes the nearer span
            assert post(path, body, pool, traceparent=f"00-{'a' * 32}-{'b' * 16}-01").status_code == 200
        assert "traceparent" not in pool.asked


def test_a_gateway_passes_on_what_grpc_clients_send() -> None:
    pool = FakePool()
    call(pool, ["a"], metadata=(("traceparent", CLIENTS), ("tracestate", STATE)))
    assert (pool.asked["traceparent"], pool.asked["tracestate"]) == (CLIENTS, STATE)


# ── what the core notes ──────────────────────────────────────────────────────────────────────────────────────────────


def _traced(roots: bool = True, **rules: Any) -> tuple[Core, list[Record]]:
    made = core(**rules)
    made.traces = Traces(roots)
    return made, made.traces.ended


def _done(action: Any, began_s: float, ended_s: float, tokenize_ms: float = 100.0) -> Finished:
    assert isinstance(action, SendJob) and action.job.timed
    tokens = tuple(3 * len(part.rows) for part in action.job.parts)
    run_ms = (ended_s - began_s) * 1e3
    done = Done(action.job.id, run_ms, tokens, tokenize_ms=tokenize_ms, began_s=began_s, ended_s=ended_s)
    return Finished(action.worker, done, b"")


def _spelled(record: Record) -> list[tuple[str, float, float]]:
    return [(stage.name, round(stage.began_s, 6), round(stage.ended_s, 6)) for stage in (whole(record), *stages(record))]


def test_stages_of_one_job_follow_each_other_from_the_sending_to_the_answer() -> None:
    made, ended = _traced()
    made.handle(Joined(1, 0.1, index=5), 0.0)
    [job] = play(made, ask(sent_s=9.0, texts=["one", "two"], traceparent=CLIENTS, tracestate=STATE), 10.0)
    assert ended == []
    play(made, _done(job, 10.5, 12.5), 13.0)
    [record] = ended
    assert _spelled(record) == [
        ("embedpool.embed", 9.0, 13.0),
        ("receive", 9.0, 10.0),
        ("queue", 10.0, 10.5),
        ("tokenize", 10.5, 10.6),
        ("run", 10.6, 12.5),
        ("deliver", 12.5, 13.0),
    ]
    assert (record.traceparent, record.tracestate, record.model) == (CLIENTS, STATE, "model")
    assert (record.rows, record.dim, record.tokens, record.outcome, record.jobs) == (2, 4, 6, "answered", 1)
    assert record.interactive
    assert [(work.worker, work.rows, work.tokens) for work in record.works] == [(5, 2, 6)]
    assert sum(s.ended_s - s.began_s for s in stages(record)) == pytest.approx(4.0)


def test_a_request_of_several_jobs_has_the_stages_of_each_and_waits_for_the_last() -> None:
    made, ended = _traced(slice_ms=10)
    play(made, joined(1), 0.0)
    play(made, joined(2), 0.0)
    first, second = play(made, ask(texts=words(2, 76)), 1.0)
    play(made, _done(second, 1.2, 1.6), 1.7)
    assert ended == []
    play(made, _done(first, 1.1, 2.0), 2.5)
    [record] = ended
    assert _spelled(record) == [
        ("embedpool.embed", 1.0, 2.5),
        ("queue", 1.0, 1.1),
        *(("tokenize", 1.2, 1.3), ("run", 1.3, 1.6)),
        *(("tokenize", 1.1, 1.2), ("run", 1.2, 2.0)),
        ("deliver", 2.0, 2.5),
    ]


def test_a_worker_that_does_not_say_when_leaves_what_the_router_saw() -> None:
    made, ended = _traced()
    play(made, joined(1), 0.0)
    [job] = play(made, ask(), 1.0)
    assert isinstance(job, SendJob)
    play(made, Finished(1, Done(job.job.id, 300.0, (3,), tokenize_ms=100.0), b""), 1.5)
    spelled = _spelled(ended[0])[1:]
    assert spelled == [("queue", 1, 1), ("tokenize", 1, 1.1), ("run", 1.1, 1.5), ("deliver", 1.5, 1.5)]


def test_what_is_refused_at_once_has_no_stage_but_its_way_and_says_why() -> None:
    made, ended = _traced()
    play(made, ask(model="another", sent_s=1.5), 2.0)
    assert _spelled(ended[0]) == [("embedpool.embed", 1.5, 2.0), ("receive", 1.5, 2.0)]
    assert (ended[0].outcome, ended[0].model) == ("unknown_model", "another")
    assert "another" in ended[0].message
    play(made, ask(texts=()), 3.0)
    assert (ended[1].outcome, stages(ended[1])) == ("answered", [])


def test_what_expires_or_loses_its_session_waited_in_the_queue() -> None:
    made, ended = _traced()
    play(made, ask(1, budget_ms=1_000.0), 1.0)
    play(made, Tick(), 2.5)
    play(made, ask(2), 3.0)
    play(made, Closed(ALICE), 4.0)
    assert [(record.outcome, _spelled(record)[1:]) for record in ended] == [
        ("expired", [("queue", 1.0, 2.5)]),
        ("session_ended", [("queue", 3.0, 4.0)]),
    ]


@pytest.mark.parametrize(
    ("roots", "traceparent", "is_noted"),
    [
        *((True, "", True), (True, CLIENTS, True), (True, UNSAMPLED, False), (True, "nonsense", True)),
        *((False, "", False), (False, CLIENTS, True), (False, UNSAMPLED, False), (False, "nonsense", False)),
    ],
)
def test_who_asks_decides_what_is_noted(roots: bool, traceparent: str, is_noted: bool) -> None:
    made, ended = _traced(roots)
    play(made, joined(1), 0.0)
    [job] = play(made, ask(traceparent=traceparent), 1.0)
    assert isinstance(job, SendJob)
    assert job.job.timed is is_noted
    play(made, Finished(1, Done(job.job.id, 5.0, (1,)), b""), 2.0)
    assert len(ended) == is_noted
    assert not is_noted or ended[0].traceparent == (traceparent if traceparent == CLIENTS else "")


def test_without_a_tracer_nothing_is_noted_and_no_worker_is_asked_for_moments() -> None:
    made = core()
    play(made, joined(1), 0.0)
    [job] = play(made, ask(traceparent=CLIENTS), 1.0)
    assert isinstance(job, SendJob)
    assert not job.job.timed
    assert all(request.trace is None for request in made.all_open())


def test_in_random_histories_every_request_has_one_record_with_the_outcome_that_is_counted() -> None:
    for seed in range(80):
        history = choose(seed)
        made, ended = _traced(slice_ms=history.slice_ms, **RULES)
        Player(made).play(history.moves)
        counted: Counter[tuple[bool, str]] = Counter()
        for interactive in (True, False):
            tally = made.tally.of(interactive)
            counted.update({(interactive, code): n for code, n in tally.refused.items()})
            counted += Counter({(interactive, "answered"): tally.answered, (interactive, "session_ended"): tally.dropped})
        assert Counter((record.interactive, record.outcome) for record in ended) == counted, seed
        for record in ended:
            parts, all_of_it = stages(record), whole(record)
            assert all(all_of_it.began_s <= p.began_s <= p.ended_s <= all_of_it.ended_s for p in parts), (seed, record)


def test_jobs_beyond_the_most_are_counted_and_not_told_one_by_one() -> None:
    out: list[Record] = []
    noted = Trace(Embed(1, ("a",)), "model", False, 0.0, out)
    count = MOST_JOBS + 3
    for n in range(count):
        noted.computed(0, 1, 1, Done(n, 1.0, (1,), began_s=1.0 + n, ended_s=2.0 + n), (0.0, 0.0))
    noted.ended(Vectors(1, 1, 4, 9, "f"), count + 2.0)
    assert (out[0].jobs, len(out[0].works)) == (count, MOST_JOBS)
    first, *_, last = stages(out[0])
    assert (first.ended_s, last.name, last.began_s, last.ended_s) == (1.0, "deliver", count + 1.0, count + 2.0)


# ── packets ──────────────────────────────────────────────────────────────────────────────────────────────────────────

WORK = Work(1, 2, 30, 10.25, 10.5, 11.0, 480.0)
RECORD = Record(CLIENTS, STATE, "model", True, 2, 384, 30, 0.0, 10.0, 10.25, 11.0, 12.0, "answered", "", 1, (WORK,))


def test_records_come_out_of_packets_as_they_went_in() -> None:
    many = [RECORD] * (2 * PACKET_RECORDS + 1)
    made = list(packets(many))
    assert [count for _, count in made] == [PACKET_RECORDS, PACKET_RECORDS, 1]
    assert [record for packet, _ in made for record in unpacked(packet)] == many


def test_a_packet_of_records_at_their_longest_is_no_longer_than_is_read() -> None:
    name = "\U0001f600" * 512
    works = tuple([Work(511, 1 << 16, 1 << 40, 1e9, 1e9, 1e9, 1e9)] * MOST_JOBS)
    record = Record("x" * 512, "x" * 512, name, True, 1 << 16, 1 << 20, 1 << 40, *[1e9] * 5, "x" * 32, name[:300], 99, works)
    [(packet, _)] = packets([record] * PACKET_RECORDS)
    assert len(packet) < PACKET_BYTES


def test_what_the_socket_has_no_room_for_is_dropped_and_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    router, tracer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with router, tracer:
        outlet = Outlet(router, roots=True)
        outlet.traces.ended += [RECORD] * (PACKET_RECORDS - 1)
        outlet.flush_full()
        assert outlet.facts() == {"recorded": 0, "dropped": 0}, "what makes no packet waits"
        while not outlet.dropped:
            outlet.traces.ended += [RECORD] * PACKET_RECORDS
            outlet.flush_full()
        outlet.traces.ended.append(RECORD)
        outlet.flush()
        assert outlet.traces.ended == []
        assert outlet.dropped in (PACKET_RECORDS, PACKET_RECORDS + 1)
        tracer.setblocking(False)
        assert sum(len(unpacked(packet)) for packet in _received(tracer)) == outlet.sent
    assert [each.name for each in caplog.records] == ["embedpool.router"]


def _received(sock: socket.socket) -> Iterator[bytes]:
    try:
        while True:
            yield sock.recv(PACKET_BYTES)
    except BlockingIOError:
        pass


# ── spans ────────────────────────────────────────────────────────────────────────────────────────────────────────────

DAY_NS = 1_700_000_000 * 10**9


def _spans(record: Record, sampler: Any = DEFAULT_ON, most: int = 100) -> tuple[dict[str, ReadableSpan], Exports]:
    exporter, exports = InMemorySpanExporter(), Exports(most)
    made = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(Counted(exporter, exports, LastWords("embedpool.tests"))))
    write(record, made.get_tracer("test"), exports, DAY_NS)
    return {span.name: span for span in exporter.get_finished_spans()}, exports


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_spans_have_the_clients_as_parent_and_the_time_of_day() -> None:
    found, exports = _spans(RECORD)
    top = found.pop("embedpool.embed")
    assert top.parent is not None and top.context is not None
    assert (f"{top.parent.trace_id:032x}", f"{top.parent.span_id:016x}") == (TRACE, SPAN)
    assert top.parent.is_remote
    assert top.context.trace_state.to_header() == STATE
    assert (top.kind, top.status.status_code) == (SpanKind.SERVER, StatusCode.UNSET)
    assert (top.start_time, top.end_time) == (DAY_NS + 10 * 10**9, DAY_NS + 12 * 10**9)
    assert _attributes(top) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "embedpool",
        "gen_ai.request.model": "model",
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.embeddings.dimension.count": 384,
        "embedpool.class": "interactive",
        "embedpool.rows": 2,
        "embedpool.jobs": 1,
    }
    assert list(found) == ["queue", "tokenize", "run", "deliver"]
    assert all(span.parent == top.context and span.kind is SpanKind.INTERNAL for span in found.values())
    times = {name: (span.start_time or 0, span.end_time or 0) for name, span in found.items()}
    assert {name: [(moment - DAY_NS) / 1e9 for moment in both] for name, both in times.items()} == {
        "queue": [10.0, 10.25],
        "tokenize": [10.25, 10.5],
        "run": [10.5, 11.0],
        "deliver": [11.0, 12.0],
    }
    assert _attributes(found["run"]) == {
        "embedpool.worker": 1,
        "embedpool.rows": 2,
        "embedpool.tokens": 30,
        "embedpool.run_ms": 480.0,
    }
    assert (exports.waiting, exports.exported, exports.lost) == (0, 5, 0)


def _with(**fields: Any) -> Record:
    return Record(**{**{name: getattr(RECORD, name) for name in Record.__struct_fields__}, **fields})


def test_a_refusal_is_an_error_with_its_code_and_words() -> None:
    found, _ = _spans(_with(outcome="expired", message="not done within its budget", works=(), jobs=0, begun_s=12.0))
    top = found["embedpool.embed"]
    assert (top.status.status_code, top.status.description) == (StatusCode.ERROR, "not done within its budget")
    assert _attributes(top)["error.type"] == "expired"
    assert "gen_ai.usage.input_tokens" not in _attributes(top)
    assert list(found) == ["queue", "embedpool.embed"]


def test_without_a_context_a_trace_begins() -> None:
    found, _ = _spans(_with(traceparent="", tracestate=""))
    assert found["embedpool.embed"].parent is None
    assert len({span.context.trace_id for span in found.values() if span.context}) == 1


def test_what_the_sampler_leaves_out_takes_no_room() -> None:
    found, exports = _spans(_with(traceparent="", tracestate=""), TraceIdRatioBased(0.0))
    assert (found, exports.waiting, exports.lost) == ({}, 0, 0)


def test_a_request_whose_spans_have_no_room_gets_none() -> None:
    found, exports = _spans(RECORD, most=4)
    assert (found, exports.waiting, exports.lost) == ({}, 0, 5)


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Moody(SpanExporter):
    """Does what it is told next."""

    def __init__(self) -> None:
        self.next: SpanExportResult | Exception = SpanExportResult.SUCCESS

    def export(self, _: Any) -> SpanExportResult:
        if isinstance(self.next, Exception):
            raise self.next
        if self.next is SpanExportResult.FAILURE:
            logging.getLogger("moody.exporter").error("Connection refused by %s", "nobody")
        return self.next


def test_a_collector_that_is_down_is_two_lines_however_long_it_is(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    inner, exports = Moody(), Exports(100, lambda: now[0])
    counted = Counted(inner, exports, LastWords("moody"))

    def export(count: int) -> None:
        assert exports.take(count)
        counted.export([object()] * count)  # type: ignore[list-item]

    export(1)
    for mood in (SpanExportResult.FAILURE, SpanExportResult.SUCCESS, OSError("unplugged"), SpanExportResult.FAILURE):
        inner.next = mood
        export(3)
        now[0] += QUIET_S - 0.1
    inner.next = SpanExportResult.SUCCESS
    export(2)
    assert len(caplog.records) == 1, "it is not over yet"
    now[0] += 0.1
    export(2)
    export(2)
    assert (exports.lost, exports.exported, exports.waiting) == (9, 10, 0)
    first, second = [each.getMessage() for each in caplog.records]
    assert first.endswith("Connection refused by nobody")
    assert second.endswith("since the tracer's start: 9")


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_opentelemetrys_variables_are_read_as_it_reads_them() -> None:
    assert traces_begin_here({}) and traces_begin_here({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"})
    assert not traces_begin_here({"OTEL_TRACES_SAMPLER": "parentbased_always_off"})
    assert traces_protocol({}) == "http/protobuf"
    both = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}
    assert traces_protocol(both) == "http/json"
    assert [most_waiting_spans({"OTEL_BSP_MAX_QUEUE_SIZE": said}) for said in ("", "x", "0", "-1", "7")] == [2048] * 4 + [7]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "is_there", lambda name: name == "opentelemetry.sdk")
    with pytest.raises(ConfigError, match=r"otlp\.proto\.http: pip install 'embedpool\[traces\]'"):
        tracing.Tracing(Config(traces="console"))
    tracing.Tracing(Config()).close()


def test_a_protocol_that_is_not_spoken_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="grpc"):
        tracing.Tracing(Config(traces="otlp"))


def test_the_page_names_every_span_and_every_attribute() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "traces.md").read_text()
    said = set(re.findall(r"[\w.]+", page))
    for record in (_with(sent_s=9.0), _with(outcome="expired")):
        found, _ = _spans(record)
        assert set(found) <= said
        assert {name for span in found.values() for name in _attributes(span)} <= said
    assert f"first {MOST_JOBS} to end" in page
