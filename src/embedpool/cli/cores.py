"""`embedpool cores`: which cores the workers of a pool get on this machine, and why. Starts nothing."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedpool.cli.serve import add_settings, settings
from embedpool.supervise.cores import CorePlan, plan
from embedpool.supervise.machine import read_machine
from embedpool.supervise.topology import Cpu, Machine, spelled

LISTED = 16  # workers of several CPUs: of more, the line names their CPUs together
SETTINGS = ("workers", "threads_per_worker", "pin")


def arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, SETTINGS)
    parser.add_argument("--json", action="store_true", help="machine, plan and reasons as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    wanted = settings(arguments)
    machine = read_machine()
    made = plan(machine, wanted.workers, wanted.threads_per_worker, wanted.pin)
    if arguments.json:
        print(json.dumps(document(machine, made), indent=2))
    else:
        show(machine, made, Console(highlight=False))
    return 0


def document(machine: Machine, made: CorePlan) -> dict[str, Any]:
    """All of it, for programs: CPU numbers as numbers."""
    bounds = machine.bounds
    return {
        "machine": machine.name,
        "power_mode": machine.power_mode,
        "workers": [list(group) for group in made.workers],
        "pinned": made.pinned,
        "rest": list(made.rest),
        "reason": made.reason,
        "why": {choice.about: choice.why for choice in made.choices},
        "online": sorted(bounds.online),
        "offline": sorted(machine.offline),
        "affinity": sorted(bounds.affinity) if bounds.affinity is not None else None,
        "cpuset": sorted(bounds.cpuset) if bounds.cpuset is not None else None,
        "quota": {"cpus": bounds.quota.cpus, "group": bounds.quota.group} if bounds.quota is not None else None,
        "cpus": [
            {
                "cpu": cpu.number,
                "core": sorted(cpu.core),
                "cluster": sorted(cpu.cluster),
                "cache": sorted(cpu.cache),
                "node": cpu.node,
                "package": cpu.package,
                "capacity": cpu.capacity,
            }
            for cpu in machine.cpus
        ],
    }


def show(machine: Machine, made: CorePlan, console: Console) -> None:
    """For people, in 80 columns."""
    console.print(_facts(machine, made))
    console.print()
    console.print(_topology(machine, made))
    console.print()
    console.print(_reasons(made))


def _facts(machine: Machine, made: CorePlan) -> Table:
    rows = _plain()
    rows.add_row("machine", escape(machine.name or "a machine that does not say its name"))
    if machine.power_mode:
        rows.add_row("power", escape(f"mode {machine.power_mode} (nvpmodel)"))
    rows.add_row("plan", escape(made.reason))
    rows.add_row("workers", spoken(made))
    return rows


def spoken(made: CorePlan) -> str:
    """Where the workers are, in a line."""
    count, width = len(made.workers), len(made.workers[0])
    if not made.pinned:
        return f"{count}, on any CPU"
    flat = [cpu for group in made.workers for cpu in group]
    each = f"{count}, on {width} CPU{'s' * (width > 1)} each: "
    if flat == sorted(set(flat)) and (width == 1 or count > LISTED):
        return each + spelled(flat)
    return each + " | ".join(spelled(group) for group in made.workers)


def _topology(machine: Machine, made: CorePlan) -> Table:
    """A row for all CPUs that are alike: of one package, node, last-level cache and capacity."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("package", "node", "cores", "capacity", "workers", "CPUs"):
        table.add_column(name, justify="left" if name == "CPUs" else "right", overflow="fold")
    kinds: dict[tuple[int, int, int, int], list[Cpu]] = {}
    for cpu in machine.cpus:
        # Caches that one CPU alone has are no reason for a row of its own.
        cache = min(cpu.cache) if len(cpu.cache - cpu.core) else -1
        kinds.setdefault((cpu.package, cpu.node, cache, cpu.capacity), []).append(cpu)
    for (package, node, _, capacity), cpus in kinds.items():
        numbers = {cpu.number for cpu in cpus}
        workers = sum(1 for group in made.workers if group[0] in numbers)
        cores = len({cpu.core for cpu in cpus})
        table.add_row(*map(str, (package, node, cores, capacity, workers)), spelled(numbers))
    if machine.offline:
        table.add_row(*[""] * 5, f"{spelled(machine.offline)} offline")
    return table


def _reasons(made: CorePlan) -> Table:
    rows = _plain()
    for choice in made.choices:
        rows.add_row(choice.about, escape(choice.why))
    return rows


def _plain() -> Table:
    rows = Table(box=None, show_header=False, pad_edge=False)
    rows.add_column(style="bold")
    rows.add_column(overflow="fold")
    return rows
