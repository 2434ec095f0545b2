"""`embedpool bench`: latency, throughput and memory of a pool, measured from outside. See docs/bench.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from embedpool.bench import RunFailed
from embedpool.bench.workload import Arrivals, Kind, Workload, parse_rates
from embedpool.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from embedpool.bench.results import Report
    from embedpool.bench.search import Slo
    from embedpool.bench.series import Plan, Progress
    from embedpool.client import Client

NEEDED = ("hdrh", "matplotlib")  # the extra's modules
PICTURES = (".png", ".svg", ".pdf")
WIDTH = 128  # where the output is no terminal


EXAMPLES = """examples:
  embedpool bench query --rate 50
  embedpool bench query --rates 10:200:20 --plot sweep.png
  embedpool bench query --slo p95=20ms
  embedpool bench mixed --model minilm --json b.json
  embedpool bench --compare a.json b.json"""
WORKLOADS = "short texts at a rate (default), large requests one after the other, or both at once"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "embedpool bench [query | bulk | mixed] [options]"
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("workload", nargs="?", choices=get_args(Kind), default="query", help=WORKLOADS)
    pool = parser.add_argument_group("the pool")
    pool.add_argument("--endpoint", help="a running pool (default: EMBEDPOOL_ENDPOINT, or the one of this machine)")
    pool.add_argument("--model", help="start a private pool of this model instead")
    pool.add_argument("--workers", default="auto", help="of the private pool (default auto)")
    _of_the_load(parser.add_argument_group("the load"))
    time_taken = parser.add_argument_group("the time")
    time_taken.add_argument("--seconds", type=float, default=10.0, metavar="S", help="measured in one run (default 10)")
    time_taken.add_argument(
        "--warmup", type=float, default=2.0, metavar="S", help="of the same load before each run (default 2)"
    )
    time_taken.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each rate (default 3)")
    output = parser.add_argument_group("the result")
    output.add_argument("--json", metavar="FILE", help="everything, histograms included")
    output.add_argument("--plot", metavar="FILE.png", help="percentiles, throughput over rate, stages, timeline")
    output.add_argument(
        "--compare", nargs=2, metavar=("A.json", "B.json"), help="two results side by side; nothing is measured"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def _of_the_load(load: argparse._ArgumentGroup) -> None:
    load.add_argument("--rate", type=float, metavar="R", help="queries per second (default 50); where --slo starts")
    load.add_argument("--rates", metavar="R", help="several: FROM:TO:STEP or a list like 10,50,100")
    load.add_argument("--slo", metavar="pN=T", help="find the highest rate that meets it, like p95=20ms")
    load.add_argument("--arrivals", choices=get_args(Arrivals), default="poisson", help="default poisson: independent users")
    load.add_argument(
        "--clients", type=int, default=0, metavar="N", help="of queries: connections (default: as needed); of bulk work: 2"
    )
    load.add_argument("--rows", type=int, default=64, metavar="N", help="texts in one bulk request (default 64)")
    load.add_argument(
        "--lengths", default="real", metavar="L", help="real (docstrings, default), short, or a file of texts by line"
    )
    load.add_argument(
        "--timeout", type=float, metavar="S", help="of a query (default 10; with --slo 20 times its limit, 1 to 10)"
    )
    load.add_argument("--seed", type=int, default=1, help="of arrivals and the order of texts (default 1)")


def run(arguments: argparse.Namespace) -> int:
    if not all(map(find_spec, NEEDED)):
        raise ConfigError("benchmarks need further packages: pip install 'embedpool[bench]'")
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    try:
        if arguments.compare:
            return _compare(arguments.compare, console)
        return _bench(arguments, console)
    except RunFailed as error:
        print(f"embedpool: the benchmark failed: {error}", file=sys.stderr)
        return 1


def _compare(paths: Sequence[str], console: Console) -> int:
    from embedpool.bench.comparison import show_comparison
    from embedpool.bench.results import read

    first, second = map(read, paths)
    console.print(f"A {paths[0]}\nB {paths[1]}", style="bold")
    show_comparison(first, second, console)
    return 0


def _bench(arguments: argparse.Namespace, console: Console) -> int:
    from embedpool.bench.report import show
    from embedpool.bench.results import write
    from embedpool.bench.series import execute
    from embedpool.bench.texts import read_texts

    plan = plan_of(arguments)
    with _pool(arguments) as pool:
        pool.model()  # whether it answers is known before the texts are read, which takes seconds
        texts = read_texts(arguments.lengths, arguments.seed)
        with _progress(plan, quiet=arguments.quiet) as progress:
            report = execute(pool, plan, texts, progress)
    show(report, console)
    if arguments.json:
        write(report, arguments.json)
    if arguments.plot:
        _draw(report, arguments.plot)
    for path in filter(None, (arguments.json, arguments.plot)):
        console.print(f"written to {path}", style="dim")
    return 0 if report.objective is None or report.objective.rate is not None else 1


def _draw(report: Report, path: str) -> None:
    from embedpool.bench.plot import draw  # half a second: only who wants a picture waits for it

    draw(report, path)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """What is to be run. Raises ConfigError for what cannot be."""
    from embedpool.bench.search import parse_slo
    from embedpool.bench.series import Plan

    slo = parse_slo(arguments.slo) if arguments.slo else None
    _check(arguments)
    workload = Workload(
        kind=arguments.workload,
        rate=None,
        arrivals=arguments.arrivals,
        clients=arguments.clients,
        rows=arguments.rows,
        warmup_s=arguments.warmup,
        seconds=arguments.seconds,
        timeout_s=arguments.timeout or _timeout_s(slo),
        seed=arguments.seed,
    )
    rates: tuple[float, ...] = () if arguments.workload == "bulk" else (50.0,) if arguments.rate is None else (arguments.rate,)
    rates = parse_rates(arguments.rates) if arguments.rates else rates
    return Plan(workload=workload, rates=rates, repeats=arguments.repeats, slo=slo)


def _timeout_s(slo: Slo | None) -> float:
    """Of a search, short: who waits much longer than the objective has missed it, and the next run waits for the last
    answer."""
    return 10.0 if slo is None else min(10.0, max(1.0, 20 * slo.limit_ms / 1e3))


def _check(arguments: argparse.Namespace) -> None:
    if arguments.endpoint and arguments.model:
        raise ConfigError("--endpoint measures a running pool, --model starts one: give one of them")
    if arguments.rate is not None and arguments.rates:
        raise ConfigError("--rate is one rate, --rates are several: give one of them")
    if arguments.slo and arguments.rates:
        raise ConfigError("--slo looks for the rate itself: give --rate to say where it starts, not --rates")
    if arguments.workload == "bulk" and (arguments.slo or arguments.rates or arguments.rate is not None):
        raise ConfigError("bulk work has no rate: its clients ask again when they have been answered")
    for name, least in (("seconds", 0.1), ("warmup", 0), ("repeats", 1), ("rows", 1), ("clients", 0), ("timeout", 0.001)):
        value = getattr(arguments, name)
        if value is not None and not least <= value <= 86_400:
            raise ConfigError(f"--{name} is a number from {least:g} to 86400, not {value:g}")
    if arguments.rate is not None:
        parse_rates(f"{arguments.rate:g}")
    if arguments.lengths not in ("real", "short") and not Path(arguments.lengths).is_file():
        raise ConfigError(f"--lengths is real, short or a file of texts by line: there is no file {arguments.lengths}")
    if arguments.plot and Path(arguments.plot).suffix not in PICTURES:
        raise ConfigError(f"--plot draws {', '.join(PICTURES)}, not {arguments.plot!r}")
    for path in filter(None, (arguments.json, arguments.plot)):
        if not Path(path).absolute().parent.is_dir():  # said now, and not when all has been measured
            raise ConfigError(f"{path} cannot be written: there is no such directory")


@contextmanager
def _pool(arguments: argparse.Namespace) -> Iterator[Client]:
    """The pool that is measured, as a client for its status; vectors come to the loads."""
    from embedpool.client import Client
    from embedpool.pool import Pool

    if arguments.model:
        with Pool(arguments.model, workers=arguments.workers, segment_bytes=0) as pool:
            yield pool
    else:
        with Client(arguments.endpoint, segment_bytes=0, connect_timeout_s=1.0) as client:
            yield client


@contextmanager
def _progress(plan: Plan, *, quiet: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        TextColumn("run {task.fields[number]}"),
        TimeRemainingColumn(),
    )
    shown = not quiet and sys.stderr.isatty()
    # Twice a second is enough to look alive: drawing takes time from what is measured.
    with Bar(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True, disable=not shown) as bar:
        yield _Shown(bar, plan)


class _Shown:
    """A Progress of seconds; a search's total is a guess, and grows with it."""

    def __init__(self, bar: Bar, plan: Plan) -> None:
        self._bar, self._plan, self._number = bar, plan, 0
        self._each_s = plan.workload.warmup_s + plan.workload.seconds
        self._task = bar.add_task("starting", total=plan.runs * self._each_s, number=0)

    def run(self, what: str) -> None:
        self._number += 1
        total = max(self._plan.runs, self._number) * self._each_s
        done = (self._number - 1) * self._each_s
        self._bar.update(self._task, description=what, number=self._number, total=total, completed=done)

    def passed(self, seconds: float) -> None:
        self._bar.advance(self._task, seconds)
