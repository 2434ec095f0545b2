"""All runs of one benchmark: every rate, every repeat, or the search for the highest rate that meets an objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from embedpool.bench.machine import read_status, this_machine
from embedpool.bench.measure import STATUS_S, is_late, measure
from embedpool.bench.numbers import spreads
from embedpool.bench.recording import merged, percentile_ms
from embedpool.bench.results import FORMAT, Objective, Point, Report, Run, Settings
from embedpool.bench.search import LOWEST_PER_S, Search, Slo, Verdict
from embedpool.bench.texts import Texts
from embedpool.bench.workload import Workload
from embedpool.client import Client

LEAST_QUERIES = 10  # of a run by which an objective is judged


class Progress(Protocol):
    """Who shows how far it is."""

    def run(self, what: str) -> None:
        """Another run begins."""

    def passed(self, seconds: float) -> None:
        """Of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`workload` at each of the rates (none for bulk work), so many times each; with `slo`, a search that starts at the
    first."""

    workload: Workload
    rates: tuple[float, ...]
    repeats: int
    slo: Slo | None = None

    @property
    def runs(self) -> int:
        """How many there will be; of a search, about."""
        return 9 * (self.repeats // 2 + 1) if self.slo else max(1, len(self.rates)) * self.repeats


def execute(pool: Client, plan: Plan, texts: Texts, progress: Progress) -> Report:
    """The whole benchmark. Repeats of different rates take turns, so that a machine that grows slower does not make one rate
    look worse. Raises RunFailed."""
    measured = read_status(pool.status(timeout_s=STATUS_S)).measured()
    objective = None
    if plan.slo is not None:
        runs, objective = _search(pool, plan, plan.slo, texts, progress)
    else:
        runs = []
        for repeat in range(plan.repeats):
            for rate in plan.rates or (None,):
                runs.append(_run(pool, replace(plan.workload, rate=rate), texts, repeat, progress, f"repeat {repeat + 1}"))
    return Report(
        format=FORMAT,
        date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        machine=this_machine(),
        pool=measured,
        settings=_settings(plan, texts),
        points=_points(runs),
        objective=objective,
    )


def _run(pool: Client, workload: Workload, texts: Texts, repeat: int, progress: Progress, what: str) -> Run:
    at = f" at {workload.rate:g}/s" if workload.rate is not None else ""
    progress.run(f"{workload.kind}{at}, {what}")
    return measure(pool, workload, texts, repeat, progress.passed)


def _search(pool: Client, plan: Plan, slo: Slo, texts: Texts, progress: Progress) -> tuple[list[Run], Objective]:
    lowest = max(LOWEST_PER_S, LEAST_QUERIES / plan.workload.seconds)
    search, runs = Search(max(lowest, plan.rates[0]), plan.repeats, lowest), list[Run]()
    while (rate := search.next_rate()) is not None:
        repeat = len(search.verdicts.get(rate, ()))
        known = f"{slo}, holds at {search.holds:g}/s" if search.holds else f"{slo}"
        runs.append(_run(pool, replace(plan.workload, rate=rate), texts, repeat, progress, known))
        search.took(judge(runs[-1], slo))
    return runs, search.result(slo)


def judge(run: Run, slo: Slo) -> Verdict:
    """Whether the run's queries met the objective; `late` where they did not and the load may be why."""
    assert run.queries is not None
    latency = run.queries.latency
    found_ms = percentile_ms(merged([latency.histogram]), sum(latency.failed.values()), slo.percent)
    if found_ms is not None and found_ms <= slo.limit_ms:
        return "met"
    return "late" if is_late(run.queries) else "missed"


def _points(runs: Sequence[Run]) -> tuple[Point, ...]:
    """By rate, the lowest first."""
    rates = sorted({run.rate for run in runs}, key=lambda rate: rate or 0.0)
    grouped = {rate: tuple(run for run in runs if run.rate == rate) for rate in rates}
    return tuple(Point(rate=rate, numbers=spreads(found), runs=found) for rate, found in grouped.items())


def _settings(plan: Plan, texts: Texts) -> Settings:
    workload = plan.workload
    return Settings(
        workload=workload.kind,
        rates=plan.rates,
        arrivals=workload.arrivals,
        clients=workload.clients,
        rows=workload.rows,
        warmup_s=workload.warmup_s,
        seconds=workload.seconds,
        repeats=plan.repeats,
        timeout_s=workload.timeout_s,
        texts=texts.of,
        seed=workload.seed,
    )
