"""`embedpool serve`."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import time
from collections.abc import Sequence
from functools import partial

from embedpool import config, logs
from embedpool.errors import EmbedpoolError
from embedpool.supervise.notify import Notify, taken
from embedpool.supervise.serve import Started, serve

log = logging.getLogger("embedpool.supervisor")


def arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--ready-json", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--owner-fd", type=int, default=-1, help=argparse.SUPPRESS)


def add_settings(parser: argparse.ArgumentParser, names: Sequence[str] = ()) -> None:
    """A flag for every setting, or for those of these names, and --config."""
    parser.add_argument("--config", metavar="FILE", default=None, help="TOML file with settings by name")
    for row in config.rows():
        if names and row.name not in names:
            continue
        unit = f" [{row.metadata['unit']}]" if row.metadata["unit"] else ""
        default = {"": "", "workers": "auto"}.get(row.name, str(row.default).lower())
        help = f"{row.metadata['help']}{unit}" + (f" (default {default})" if default else "")
        parser.add_argument(config.flag(row.name), dest=row.name, metavar="X", default=None, help=help.replace("%", "%%"))


def settings(arguments: argparse.Namespace) -> config.Config:
    """The settings in force for a command with these arguments. Raises ConfigError."""
    file = arguments.config or os.environ.get(config.variable("config"), "")
    return config.load(vars(arguments), file)


def run(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    # A private pool (--ready-json) says on its owner's stderr only what went wrong.
    level = logging.WARNING if arguments.ready_json else logging.INFO
    shape = logs.begin("embedpool", "auto", level)
    # Its owner, which may be a service itself, has not said that this pool is the service.
    notify = Notify() if arguments.ready_json else taken(os.environ, os.getpid())
    if notify.watchdog_s:
        faulthandler.enable()  # a supervisor that is stuck is ended by SIGABRT: the log then shows where

    def ready(started: Started) -> None:
        said = ready_line(started, time.monotonic() - began)
        if arguments.ready_json:
            places = {"endpoint": started.endpoint, "http": started.http, "grpc": started.grpc}
            print(json.dumps({**places, "pid": os.getpid()}), flush=True)
        elif shape in ("journal", "json"):
            log.info("%s", said, extra={"event": "pool ready", "model": started.model.name, "endpoint": started.endpoint})
        else:
            print(f"embedpool is {said}", flush=True)

    try:
        read = partial(settings, arguments)
        chosen = read()
        shape = logs.begin("embedpool", chosen.log_format, level)
        status = serve(chosen, ready, log.warning, arguments.owner_fd, load=read, notify=notify)
    except EmbedpoolError as error:
        if arguments.ready_json:
            print(json.dumps({"error": error.message}), flush=True)
        else:
            log.error("%s", error.message)
        return 2
    if status and arguments.ready_json:
        print(json.dumps({"error": "no worker could be started: see the messages above"}), flush=True)
    return status


def ready_line(started: Started, seconds: float) -> str:
    """What `serve` says when the first answer could be given."""
    model = started.model
    cores, count = ", ".join("+".join(map(str, group)) for group in started.plan.workers), len(started.plan.workers)
    where = f"on core{'s' * (count != 1)} {cores}" if started.plan.pinned else "not pinned"
    also = "".join(f" and {url}" for url in (started.http, started.grpc) if url)
    return (
        f"ready after {seconds:.1f} s: {model.name} ({model.dim} dimensions) at {started.endpoint}{also},"
        f" {count} worker{'s' * (count != 1)} {where}"
    )
