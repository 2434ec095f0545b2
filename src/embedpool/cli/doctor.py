"""`embedpool doctor`: is this machine, and the pool on it, set up well? Exit status 1 where something is broken."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedpool.cli.serve import add_settings, settings
from embedpool.doctor.checks import checks
from embedpool.doctor.facts import Check
from embedpool.doctor.read import read_facts

STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}


def arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--json", action="store_true", help="the checks as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    found = checks(read_facts(settings(arguments)))
    if arguments.json:
        print(json.dumps({"verdict": worst(found), "checks": [asdict(check) for check in found]}, indent=2))
    else:
        show(found, Console(highlight=False))
    return 1 if worst(found) == "bad" else 0


def worst(found: Sequence[Check]) -> str:
    """The verdict on all of them."""
    return max((check.verdict for check in found), key=list(STYLES).index)


def show(found: Sequence[Check], console: Console) -> None:
    """A row each, in 80 columns; what is not well says also what it costs and how to mend it."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for overflow in ("ignore", "fold", "fold"):
        table.add_column(overflow=overflow)
    for check in found:
        table.add_row(f"[{STYLES[check.verdict]}]{check.verdict}[/]", f"[bold]{check.name}[/]", escape(check.found))
        for name, said in (("costs", check.costs), ("mend", check.mend)):
            if said:
                table.add_row("", f"  {name}", escape(said))
    console.print(table)
    counts = {verdict: sum(check.verdict == verdict for check in found) for verdict in STYLES}
    console.print()
    console.print(f"{counts['ok']} of {len(found)} as they should be, {counts['warn']} to look at, {counts['bad']} broken")
