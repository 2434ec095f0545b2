"""`embedpool status`: the running pool, as a table, as JSON or as metrics."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from embedpool.client import Client
from embedpool.errors import ConfigError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the whole state as one JSON document")
    parser.add_argument("--prometheus", action="store_true", help="metrics in Prometheus' text form, see docs/metrics.md")
    parser.add_argument("--textfile", metavar="PATH", type=Path, help="metrics into this file (*.prom), written as a whole")
    parser.add_argument("--every", metavar="S", type=float, help="metrics again every so many seconds, until stopped [s]")
    parser.add_argument("--endpoint", help="the pool (default: EMBEDPOOL_ENDPOINT, or the one of this machine)")


def run(arguments: argparse.Namespace) -> int:
    metrics = arguments.prometheus or arguments.textfile is not None
    if arguments.json and metrics:
        raise ConfigError("--json and metrics are two forms: ask for one of them")
    if arguments.every is not None and (not metrics or arguments.every <= 0):
        raise ConfigError("--every S needs --prometheus or --textfile, and more than 0 seconds")
    if metrics:
        from embedpool.cli.exporting import export  # its library takes longer to import than the status to be asked

        return export(arguments.endpoint, arguments.textfile, arguments.every)
    with Client(arguments.endpoint, segment_bytes=0, connect_timeout_s=1.0) as pool:
        found = json.loads(pool.status())
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return 0 if found["state"] in ("serving", "draining") else 1


def _show(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    model, queue, sessions, done = found["model"], found["queue"], found["sessions"], found["counters"]
    reason = f" ({found['reason']})" if found["reason"] else ""
    rows = Table(box=None, show_header=False, pad_edge=False)
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    rows.add_row("state", f"{found['state']}{reason}, up {found['uptime_s']:.0f} s, at {found['pool']['endpoint']}")
    rows.add_row("model", f"{model['name']}, {model['dim']} dimensions, at most {model['max_tokens']} tokens")
    rows.add_row("fingerprint", model["fingerprint"])
    rows.add_row("queue", f"{queue['requests']} requests, {queue['rows']} texts, about {queue['estimated_ms']:.0f} ms")
    rows.add_row(
        "sessions",
        f"{sessions['open']} open, {sessions['segments']} with a segment, {sessions['segment_bytes'] / 1e6:.1f} MB",
    )
    refused = ", ".join(f"{n} {code}" for code, n in done["refused"].items()) or "none"
    if found["reload"]["state"] in ("running", "failed"):
        rows.add_row("reload", ": ".join(filter(None, (found["reload"]["state"], found["reload"]["reason"]))))
    rows.add_row("done", f"{done['answered']} requests, {done['rows']} texts, {done['tokens']} tokens; refused: {refused}")
    console.print(rows)
    workers = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("worker", "pid", "cores", "state", "restarts", "jobs", "texts"):
        workers.add_column(name, justify="left" if name in ("cores", "state") else "right")
    for w in found["workers"]:
        cores = ",".join(map(str, w["cores"])) or "any"
        cells = (w["index"], w["pid"], cores, w["state"], w["restarts"], w["jobs_done"], w["rows_done"])
        workers.add_row(*map(str, cells))
    console.print()
    console.print(workers)
