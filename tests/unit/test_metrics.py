"""Prometheus' text form of a pool and of its gateway; the page and the dashboard that are written about its names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from embedpool import metrics
from embedpool.gateway.metrics import Metrics
from embedpool.memory import Memory, memory_of
from tests.gateway import STATUS

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
NAME = re.compile(r"\b(?:embedpool|te)_[a-z_]+")
SELECTOR = re.compile(r"\b((?:embedpool|te)_[a-z_]+)\{([^}]*)\}")
ADDED = {"instance", "job"}  # labels that Prometheus itself gives


class Row(NamedTuple):
    """Of the table of docs/metrics.md."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def _memory() -> dict[int, Memory]:
    return {pid: Memory(1000 + pid, 100 + pid) for pid in metrics.pids(STATUS)}


def _samples(status: dict[str, Any], memory: dict[int, Memory] | None = None) -> list[Sample]:
    text = metrics.exposition(status, _memory() if memory is None else memory).decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def _value(samples: list[Sample], name: str, **labels: str) -> float:
    [value] = [each.value for each in samples if each.name == name and each.labels == labels]
    return value


def _gateway() -> Metrics:
    """One that has counted something under each label."""
    made = Metrics()
    made.requests.labels("/embed", 200).inc()
    made.seconds.labels("/embed").observe(0.01)
    for counter in (made.te.counts, made.te.successes):
        counter["single"] += 1
    made.te.failures["overloaded"] += 1
    return made


def _exported() -> list[Row]:
    text = _gateway().exposition(STATUS, _memory()).decode()
    rows = []
    for family in text_string_to_metric_families(text):
        if not family.name.endswith("_created"):  # the library's own, beside each counter and histogram
            labels = {label for sample in family.samples for label in sample.labels if label != "le"}
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append(Row(name, family.type, tuple(sorted(labels)), family.documentation))
    return rows


EXPORTED = _exported()
LABELS = {
    row.name + suffix: {*row.labels, "le"} if suffix == "_bucket" else {*row.labels}
    for row in EXPORTED
    for suffix in (SUFFIXES["histogram"] if row.kind == "histogram" else ("",))
}


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_are_told_by_class_and_outcome() -> None:
    samples = _samples(STATUS)
    for outcome, n in (("answered", 2), ("refused", 4), ("dropped", 1)):
        labels = {"model": "echo:384", "class": "interactive", "outcome": outcome}
        assert _value(samples, "embedpool_requests_total", **labels) == n
    labels = {"model": "echo:384", "class": "interactive"}
    assert _value(samples, "embedpool_refusals_total", **labels, code="overloaded") == 4
    assert _value(samples, "embedpool_rows_total", **labels) == 3
    assert _value(samples, "embedpool_tokens_total", **labels) == 29


def test_stages_are_histograms_in_seconds_with_cumulative_buckets() -> None:
    samples = _samples(STATUS)
    labels = {"model": "echo:384", "class": "interactive", "stage": "queue"}
    found = [s for s in samples if s.name == "embedpool_request_seconds_bucket" and labels.items() <= s.labels.items()]
    by_bound = {float(sample.labels["le"]): sample.value for sample in found}
    assert (by_bound[0.002], by_bound[0.005], by_bound[0.2], by_bound[0.5], by_bound[float("inf")]) == (0, 1, 1, 2, 2)
    assert _value(samples, "embedpool_request_seconds_sum", **labels) == pytest.approx(0.303)
    assert _value(samples, "embedpool_request_seconds_count", **labels) == 2


def test_padding_waste_can_be_told_from_runs() -> None:
    samples = _samples(STATUS)
    assert _value(samples, "embedpool_run_tokens_total") == 524
    assert _value(samples, "embedpool_run_padded_tokens_sum") == 532
    assert _value(samples, "embedpool_run_padded_tokens_count") == _value(samples, "embedpool_run_rows_count") == 2


def test_workers_are_told_apart_by_their_index() -> None:
    samples = _samples(STATUS)
    assert _value(samples, "embedpool_worker_busy_seconds_total", worker="1") == 1.5
    assert _value(samples, "embedpool_worker_restarts_total", worker="1") == 2
    assert _value(samples, "embedpool_worker_running_seconds", worker="0") == 0
    assert _value(samples, "embedpool_worker_running_seconds", worker="1") == pytest.approx(0.04)
    assert {s.labels["core"] for s in samples if s.name == "embedpool_worker_core"} == {"2", "3"}


def test_memory_is_told_where_it_is_known() -> None:
    memory = {2: Memory(5000), 11: Memory(7000, 600)}
    samples = _samples(STATUS, memory)
    assert _value(samples, "embedpool_process_resident_bytes", process="router", worker="") == 5000
    assert _value(samples, "embedpool_process_proportional_bytes", process="worker", worker="0") == 600
    assert len([s for s in samples if s.name.startswith("embedpool_process_")]) == 3


def test_a_pool_that_does_not_answer_is_down_and_nothing_more() -> None:
    assert [(sample.name, sample.value) for sample in _samples({})] == [("embedpool_up", 0.0)]
    assert metrics.pids({}) == []


def test_labels_of_any_name_are_read_back_as_they_were() -> None:
    name = 'a "model"\nof \\ some}kind'
    samples = _samples({**STATUS, "model": {**STATUS["model"], "name": name}})
    assert {s.labels["model"] for s in samples if "model" in s.labels} == {name}


def test_the_memory_of_a_process_that_is_not_embedpools_is_not_told() -> None:
    assert memory_of([1 << 22]) == {}
    mine = memory_of([os.getpid()])
    assert bool(mine) == (b"embedpool" in Path("/proc/self/cmdline").read_bytes())


# ── what is written about them ───────────────────────────────────────────────────────────────────────────────────────


def _page() -> list[Row]:
    rows = []
    for line in (DOCS / "metrics.md").read_text().splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0].startswith("`"):
            labels = tuple(label.strip("`") for label in cells[2].split(", ") if label)
            rows.append(Row(cells[0].strip("`"), cells[1], labels, cells[3]))
    return rows


def test_the_page_has_every_metric_and_no_other() -> None:
    assert sorted(_page()) == sorted(EXPORTED)


def _panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield panel
        yield from _panels(panel) if "panels" in panel else ()


EXPRESSIONS = [target["expr"] for panel in _panels(DASHBOARD) for target in panel.get("targets", ())]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_dashboard_asks_for_names_and_labels_that_exist(expression: str) -> None:
    names = NAME.findall(expression)
    assert names
    assert [name for name in names if name not in LABELS] == []
    assert expression.count("(") == expression.count(")")
    asked = {name: set(re.findall(r"(\w+)\s*=~?", selector)) for name, selector in SELECTOR.findall(expression)}
    assert asked.keys() == set(names), "every name has its selector, so that an instance can be chosen"
    for name, labels in asked.items():
        assert labels - ADDED <= LABELS[name]
    known = set().union(*(LABELS[name] for name in names))
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} - ADDED <= known


def test_counters_on_the_dashboard_are_drawn_as_rates() -> None:
    for expression in EXPRESSIONS:
        for match in re.finditer(r"embedpool_[a-z_]+_(?:total|bucket|sum|count)\b", expression):
            assert expression[: match.start()].endswith(("rate(", "increase(")), expression


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    """What its own provisioning needs: a uid and title, a schema that it can migrate from, panels with ids and places."""
    assert DASHBOARD["uid"] == "embedpool"
    assert DASHBOARD["schemaVersion"] >= 36
    assert [v["type"] for v in DASHBOARD["templating"]["list"]] == ["datasource", "query"]
    panels = list(_panels(DASHBOARD))
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(refs)) == len(refs)
    for name in NAME.findall(json.dumps(DASHBOARD["templating"])):
        assert name in LABELS
