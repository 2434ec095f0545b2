"""The command `embedpool`. Commands import what they need when they run, so that `--help` and `status` answer at once.

Exit status: 0 done; 1 the pool failed; 2 a mistake that the user can mend, said in one sentence on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from embedpool import __version__
from embedpool.errors import EmbedpoolError

COMMANDS = {
    "serve": "run a pool until it is stopped",
    "embed": "embed lines of text from files or stdin",
    "prepare": "make a model ready for this machine, before it is first served",
    "models": "list models that are known, cached and prepared; check and clean them",
    "reload": "have a running pool take up its configuration and model anew, without a pause",
    "cores": "show which cores the workers get on this machine, and why",
    "doctor": "check this machine and its pool: what is wrong, what it costs, how to mend it",
    "status": "show a running pool: model, workers, queue, sessions",
    "bench": "measure a pool: latency, throughput, memory",
    "systemd": "print or install the units that run a pool as a service",
    "demo": "search the standard library's docstrings with a pool of your own",
    "config": "show every setting: value, unit, where it came from",
}


def parser(chosen: str = "") -> argparse.ArgumentParser:
    """The command line's grammar. Only the chosen command's module is imported, for its arguments: `serve` becomes the
    supervisor, which has no use for what the others import."""
    top = argparse.ArgumentParser(
        prog="embedpool", description="A pool of worker processes that serves text embeddings on one machine."
    )
    top.add_argument("--version", action="version", version=f"embedpool {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            import_module(f"embedpool.cli.{name}").arguments(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser(next((word for word in argv if not word.startswith("-")), "")).parse_args(argv)
    try:
        status: int = import_module(f"embedpool.cli.{arguments.command}").run(arguments)
    except EmbedpoolError as error:
        print(f"embedpool: {error.message}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has left (`embedpool embed … | head`): nothing is wrong
        return 0
    except KeyboardInterrupt:
        return 130
    return status
