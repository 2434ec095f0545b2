"""`embedpool config`: every setting, as it would be in force."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedpool import config
from embedpool.cli.serve import add_settings, settings


def arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    found = settings(arguments)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("setting", "value", "default", "unit", "what it is"):
        table.add_column(column, overflow="fold")
    for row in config.rows():
        value = getattr(found, row.name)
        shown = f"[bold]{escape(str(value))}[/]" if value != row.default else escape(str(value))
        table.add_row(row.name, shown or '""', str(row.default) or '""', row.metadata["unit"], escape(row.metadata["help"]))
    console = Console()
    console.print(table)
    console.print(f"\nruntime directory  {found.runtime_path()}\nendpoint           {found.endpoint_url()}")
    console.print(f"cache              {found.cache_path()}")
    console.print("\nA setting is read from --name, EMBEDPOOL_NAME, and the file of --config, in this order.")
    return 0
