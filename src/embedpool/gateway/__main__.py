"""Entry of a gateway process: `python -m embedpool.gateway --listen 127.0.0.1:8080`, alone or as a supervisor's child.

As a child it gets `--lifeline FD`, a pipe whose other end its parent holds: the gateway ends when that is closed. It prints one
line once it listens. Exit status 0 when stopped, 2 for a mistake on the command line, said in one sentence.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from embedpool.client import AsyncClient
from embedpool.errors import ConfigError
from embedpool.gateway.options import COMPATS, Options
from embedpool.lifeline import end_with, name_process

try:
    from embedpool.gateway.app import make_app
    from embedpool.gateway.listening import bind, is_loopback, parse_listen, run
except ModuleNotFoundError as missing:
    sys.exit(f"embedpool gateway: {missing.name} is not installed: pip install 'embedpool[http]'")

log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    default = Options()
    top = argparse.ArgumentParser(prog="python -m embedpool.gateway", description="HTTP in front of a running pool.")
    add = top.add_argument
    add("--endpoint", help="the pool (default: EMBEDPOOL_ENDPOINT, or the one of this machine)")
    add("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="where to listen (default 127.0.0.1:8080)")
    add("--api-key-file", metavar="FILE", help="keys, one per line: who asks must show one as a bearer token")
    add("--compat", action="append", choices=COMPATS, default=[], help="the version meant where a dialect's differ")
    add("--model-alias", action="append", default=[], metavar="NAME", help="a further name of the pool's model; * for any")
    add("--auto-truncate", action=argparse.BooleanOptionalAction, help="cut texts that are too long (default: do)")
    add("--max-client-batch-size", type=int, default=default.max_client_batch, metavar="N", help="texts in one TEI request")
    add("--max-concurrent-requests", type=int, default=default.max_concurrent, metavar="N", help="requests at once")
    add("--max-body-bytes", type=int, default=default.max_body_bytes, metavar="N", help="one request's body")
    add("--timeout-s", type=float, default=default.timeout_s, metavar="S", help="for requests that do not say")
    add("--max-timeout-s", type=float, default=default.max_timeout_s, metavar="S", help="the most that one may ask for")
    add(
        "--receive-timeout-s",
        type=float,
        default=default.receive_timeout_s,
        metavar="S",
        help="for a head or a body to come in",
    )
    add("--lifeline", type=int, default=-1, metavar="FD", help=argparse.SUPPRESS)
    return top


def options(arguments: argparse.Namespace) -> Options:
    """Raises ConfigError for numbers that make no sense, and for a file of keys that cannot be read or has none."""
    for name in ("max_client_batch_size", "max_concurrent_requests", "max_body_bytes", "timeout_s", "receive_timeout_s"):
        if not getattr(arguments, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0")
    if not arguments.timeout_s <= arguments.max_timeout_s <= 86_400:
        raise ConfigError("--max-timeout-s must be from --timeout-s to 86400")
    return Options(
        compat=frozenset(arguments.compat),
        max_body_bytes=arguments.max_body_bytes,
        max_client_batch=arguments.max_client_batch_size,
        max_concurrent=arguments.max_concurrent_requests,
        auto_truncate=arguments.auto_truncate,
        timeout_s=arguments.timeout_s,
        max_timeout_s=arguments.max_timeout_s,
        receive_timeout_s=arguments.receive_timeout_s,
        aliases=tuple(arguments.model_alias),
        keys=keys(arguments.api_key_file) if arguments.api_key_file else (),
    )


def keys(file: str) -> tuple[str, ...]:
    """The file's lines that are not blank. A file without keys is a mistake, not an open door."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise ConfigError(f"--api-key-file {file} holds no key")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    logging.basicConfig(format="embedpool gateway: %(message)s", level=logging.WARNING, stream=sys.stderr)
    arguments = parser().parse_args(argv)
    if arguments.lifeline >= 0:
        end_with(arguments.lifeline)
        name_process("embedpool-http")
    try:
        chosen = options(arguments)
        host, port = parse_listen(arguments.listen)
        sock = bind(host, port)
    except ConfigError as error:
        print(f"embedpool gateway: {error.message}", file=sys.stderr)
        return 2
    if not is_loopback(host) and not chosen.keys:
        log.warning("%s is reachable from other machines, and anybody there may use it: give --api-key-file", host)
    place = f"[{host}]" if ":" in host else host
    ready = f"embedpool gateway listens on http://{place}:{sock.getsockname()[1]}"
    # A descriptor per connection: have as many as we may.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    app = make_app(AsyncClient(arguments.endpoint), chosen)
    run(app, sock, chosen.receive_timeout_s, lambda: print(ready, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
