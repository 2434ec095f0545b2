"""A pool's metrics in Prometheus' text form, made from its status (docs/protocol.md) and its processes' memory. Pure: whoever
calls it has asked the pool and read /proc. The gateway appends this to its own, `embedpool status` writes it by itself.

Rules
1. Names, types and labels are an interface: docs/metrics.md has them all, and docs/grafana-dashboard.json uses no others.
2. Counters are since the router's start, and begin again with the next one, as Prometheus expects of a restart.
3. What is not known is left out, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from embedpool.memory import Memory

Status = Mapping[str, Any]


class Process(NamedTuple):
    """`worker`: its index, "" for those that are none."""

    pid: int
    role: str
    worker: str = ""


class Sample(NamedTuple):
    """A value with the values of its family's labels."""

    labels: tuple[str, ...]
    value: float


def registry(status: Status, memory: Mapping[int, Memory]) -> CollectorRegistry:
    """Everything, for the library to write. `status` is {} where the pool does not answer, `memory` that of `pids`."""
    made = CollectorRegistry()
    made.register(Pool(status, memory))
    return made


def exposition(status: Status, memory: Mapping[int, Memory]) -> bytes:
    """The same as text."""
    return generate_latest(registry(status, memory))


def pids(status: Status) -> list[int]:
    """The processes of which the memory is wanted."""
    return [process.pid for process in _processes(status)] if status else []


class Pool:
    """A pool's metrics as a collector of the library."""

    def __init__(self, status: Status, memory: Mapping[int, Memory]) -> None:
        self.status = status
        self.memory = memory

    def collect(self) -> Iterator[Metric]:
        status = self.status
        yield _gauge("up", "Whether the pool answers and serves.", float(status.get("state") == "serving"))
        if status:
            yield from _pool(status)
            yield from _requests(status["classes"], status["model"]["name"])
            yield from _waiting(status["queue"], status["sessions"])
            yield from _work(status)
            yield from _workers(status["workers"])
            yield from _memory(status, self.memory)


def _pool(status: Status) -> Iterator[Metric]:
    model, version = status["model"], status["pool"]["version"]
    yield _gauge("uptime_seconds", "Since the router's start.", status["uptime_s"])
    labels = ("version", "model", "fingerprint", "precision")
    values = (version, model["name"], model["fingerprint"], model["precision"])
    yield _gauges("info", "1; which pool this is.", labels, [Sample(values, 1.0)])
    yield _counter("reloads", "Reloads that ended, well or not.", status["reload"]["count"])


def _requests(classes: Status, model: str) -> Iterator[Metric]:
    outcomes = [
        Sample((model, name, outcome), tally["answered"] if outcome == "answered" else tally["dropped"])
        for name, tally in classes.items()
        for outcome in ("answered", "dropped")
    ]
    refused = [
        Sample((model, name, code), n) for name, tally in classes.items() for code, n in sorted(tally["refused"].items())
    ]
    outcomes += [Sample((model, name, "refused"), sum(tally["refused"].values())) for name, tally in classes.items()]
    by_class = ("model", "class")
    yield _counters("requests", "Requests that ended: answered, refused, dropped.", (*by_class, "outcome"), outcomes)
    yield _counters("refusals", "Requests refused, by reason.", (*by_class, "code"), refused)
    for key, text in (("rows", "Texts of answered requests."), ("tokens", "Tokens of answered requests.")):
        yield _counters(key, text, by_class, [Sample((model, name), tally[key]) for name, tally in classes.items()])
    stages = HistogramMetricFamily(
        "embedpool_request_seconds",
        "Answered requests: in the queue, being tokenised, being run, and in all, at the router.",
        labels=(*by_class, "stage"),
    )
    for name, tally in classes.items():
        for stage, found in tally["stages"].items():
            bounds = [ms / 1e3 for ms in found["le_ms"]]
            stages.add_metric((model, name, stage), buckets(bounds, found["counts"]), found["sum_ms"] / 1e3)
    yield stages


def _waiting(queue: Status, sessions: Status) -> Iterator[Metric]:
    yield _gauge("queue_requests", "Requests with texts that wait.", queue["requests"])
    yield _gauge("queue_rows", "Texts that wait.", queue["rows"])
    yield _gauge("queue_bytes", "Bytes of requests that wait.", queue["bytes"])
    yield _gauge("queue_oldest_seconds", "Age of the oldest request that waits, 0 for none.", queue["oldest_ms"] / 1e3)
    yield _gauge("queue_estimated_seconds", "What waits, as one worker's time.", queue["estimated_ms"] / 1e3)
    yield _gauge("sessions", "Sessions of clients.", sessions["open"])
    yield _gauge("requests_open", "Requests without an answer yet.", sessions["requests_open"])
    yield _gauge("segments", "Shared memory segments.", sessions["segments"])
    yield _gauge("segment_bytes", "Bytes of all segments.", sessions["segment_bytes"])


def _work(status: Status) -> Iterator[Metric]:
    counters, runs, cost = status["counters"], status["runs"], status["cost"]
    yield _counter("jobs", "Jobs given to workers.", counters["jobs"])
    yield _counter("jobs_requeued", "Jobs of workers that were lost, given anew.", counters["requeued"])
    yield _counter("late_answers", "Answers of workers for jobs that were given away.", counters["late_answers"])
    yield _counter("rows_alike", "Texts that got the vector of an equal one: not computed.", counters["alike"])
    yield _counter("run_tokens", "Tokens that the model was run on, without padding.", runs["tokens"])
    yield _histogram("run_padded_tokens", "Tokens of a run, padding included.", runs["tokens_per_run"], runs["padded_tokens"])
    yield _histogram("run_rows", "Texts of a run: the micro-batch.", runs["rows_per_run"], runs["rows"])
    yield _gauge("cost_error", "Moving mean of |ln(measured / estimated)| of jobs.", cost["error"])
    yield _gauge("cost_unit_seconds", "What a unit of work is believed to take.", cost["unit_ms"] / 1e3)


def _workers(workers: Sequence[Status]) -> Iterator[Metric]:
    states = [worker["state"] for worker in workers]
    counted = [Sample((state,), states.count(state)) for state in sorted(set(states))]
    yield _gauges("workers", "Workers by state.", ("state",), counted)
    for key, name, text in (
        ("busy_s", "worker_busy_seconds", "Time with a job in hand."),
        ("jobs_done", "worker_jobs", "Jobs done by the process that runs now."),
        ("rows_done", "worker_rows", "Texts done by the process that runs now."),
        ("restarts", "worker_restarts", "Processes that replaced one that ended."),
    ):
        yield _counters(name, text, ("worker",), [Sample((str(worker["index"]),), worker[key]) for worker in workers])
    running = [Sample((str(w["index"]),), w["running"]["ms"] / 1e3 if w["running"] else 0.0) for w in workers]
    yield _gauges("worker_running_seconds", "For how long its job has run, 0 without one.", ("worker",), running)
    cores = [Sample((str(worker["index"]), str(core)), 1.0) for worker in workers for core in worker["cores"]]
    yield _gauges("worker_core", "1; a core that the worker is pinned to.", ("worker", "core"), cores)


def _processes(status: Status) -> list[Process]:
    ours = [Process(int(status["pool"]["pid"]), "supervisor"), Process(status["router"]["pid"], "router")]
    return ours + [Process(worker["pid"], "worker", str(worker["index"])) for worker in status["workers"]]


def _memory(status: Status, memory: Mapping[int, Memory]) -> Iterator[Metric]:
    known = [((each.role, each.worker), memory[each.pid]) for each in _processes(status) if each.pid in memory]
    labels = ("process", "worker")
    rss = [Sample(values, found.rss_bytes) for values, found in known]
    yield _gauges("process_resident_bytes", "Memory, each process's shared pages in full.", labels, rss)
    pss = [Sample(values, found.pss_bytes) for values, found in known if found.pss_bytes is not None]
    yield _gauges("process_proportional_bytes", "Memory, shared pages split among those who share.", labels, pss)


# ── the library's families ───────────────────────────────────────────────────────────────────────────────────────────


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"embedpool_{name}", text, value=value)


def _gauges(name: str, text: str, labels: Sequence[str], samples: Sequence[Sample]) -> Metric:
    family = GaugeMetricFamily(f"embedpool_{name}", text, labels=labels)
    for sample in samples:
        family.add_metric(sample.labels, sample.value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"embedpool_{name}", text, value=value)


def _counters(name: str, text: str, labels: Sequence[str], samples: Sequence[Sample]) -> Metric:
    family = CounterMetricFamily(f"embedpool_{name}", text, labels=labels)
    for sample in samples:
        family.add_metric(sample.labels, sample.value)
    return family


def _histogram(name: str, text: str, found: Status, total: float) -> Metric:
    return HistogramMetricFamily(f"embedpool_{name}", text, buckets=buckets(found["le"], found["counts"]), sum_value=total)


def buckets(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Cumulative, as the text form wants them, from counts per bucket of which the last has no bound."""
    names = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(counts)), strict=True))
