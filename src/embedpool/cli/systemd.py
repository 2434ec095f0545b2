"""`embedpool systemd`: the pool as a service of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from embedpool.errors import ConfigError
from embedpool.units.install import check, out_of_sight, own_command, place
from embedpool.units.render import DROP_INS, NAMES, Service, render

NEXT = """\
next, as root:
  systemd-sysusers && systemd-tmpfiles --create   # the user, the group, /etc/embedpool
  systemctl daemon-reload
  systemctl enable --now embedpool                # ready once a worker has computed a vector
  systemctl status embedpool                      # and journalctl -u embedpool
settings are in /etc/embedpool/embedpool.env; a client's user must be in the group {group} (see docs/systemd.md)"""


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print the files")
    show.add_argument("name", nargs="?", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}; none: all")
    install = actions.add_parser("install", help="write the files to their places under /etc")
    install.add_argument("--root", metavar="DIR", type=Path, default=Path("/"), help="write below this directory instead")
    install.add_argument("--dry-run", action="store_true", help="only say what would be written")
    install.add_argument("--jetson", action="store_true", help="with the drop-in for a Jetson's GPU")
    install.add_argument("--openvino", action="store_true", help="with the drop-in for --provider openvino")
    for action in (show, install):
        add = action.add_argument
        default = Service()
        add("--program", metavar="PATH", help="what starts embedpool (default: the one that runs now)")
        add("--user", default=default.user, help=f"that the service runs as (default {default.user})")
        add("--group", default=default.group, help=f"whose members may connect (default {default.group})")
        add("--client", metavar="USER", action="append", default=[], help="a user to be put into the group; may be repeated")
        add("--memory-max", metavar="SIZE", default=default.memory_max, help=f"MemoryMax= (default {default.memory_max})")


def run(arguments: argparse.Namespace) -> int:
    command = arguments.program or own_command()
    service = Service(
        command=command,
        user=arguments.user,
        group=arguments.group,
        clients=tuple(arguments.client),
        memory_max=arguments.memory_max,
    )
    check(service)
    return _show(service, arguments.name) if arguments.action == "show" else _install(service, arguments)


def _show(service: Service, name: str | None) -> int:
    hidden = out_of_sight(service.command)
    if hidden:
        print(f"embedpool: {hidden}", file=sys.stderr)
    chosen = [file for file in render(service) if name in (None, file.name)]
    print("\n".join(file.text if name else f"# ── /{file.path}\n{file.text}" for file in chosen), end="")
    return 0


def _install(service: Service, arguments: argparse.Namespace) -> int:
    hidden = out_of_sight(service.command)
    if hidden:
        raise ConfigError(hidden)
    asked = {name for name, wanted in zip(DROP_INS, (arguments.jetson, arguments.openvino), strict=True) if wanted}
    files = [file for file in render(service) if file.name in asked or file.name not in DROP_INS]
    for placed in place(files, arguments.root, dry_run=arguments.dry_run):
        outcome = "would be written" if arguments.dry_run and placed.outcome == "written" else placed.outcome
        print(f"{placed.path}  {outcome}")
    print(NEXT.format(group=service.group))
    return 0
