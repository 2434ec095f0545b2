"""Entry of a gateway process: `python -m embedpool.gateway --listen 127.0.0.1:8080`, alone or as a supervisor's child.

As a supervisor's child it gets three descriptors: `--lifeline`, a pipe at whose closing it ends; `--listen-fd`, the socket,
which outlives it; `--ready-fd`, to which it writes a byte once it answers. Otherwise it prints one line then. Exit status 0
when stopped, 3 when it could not begin, 2 for a mistake on the command line, said in one sentence.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import socket
import sys
from collections.abc import Sequence
from functools import partial

from embedpool import logs
from embedpool.client import AsyncClient
from embedpool.errors import ConfigError
from embedpool.gateway.address import bind, is_loopback, parse_listen, reserve, url, where
from embedpool.gateway.options import COMPATS, Options, read_keys
from embedpool.gateway.tokens import TokenizerSpec
from embedpool.lifeline import end_with, name_process

try:
    from embedpool.gateway.app import Beside, make_app
    from embedpool.gateway.listening import run
except ModuleNotFoundError as missing:
    sys.exit(f"embedpool gateway: {missing.name} is not installed: pip install 'embedpool[http]'")

log = logging.getLogger("embedpool.gateway")  # as a program, __name__ is not its name

CANNOT_BEGIN = 3  # exit status; of uvicorn, too, which mostly ends the process itself then
OPEN_DOOR = "%s is reachable from other machines, and anybody there may use it: give --api-key-file"


def parser() -> argparse.ArgumentParser:
    default = Options()
    top = argparse.ArgumentParser(prog="python -m embedpool.gateway", description="HTTP in front of a running pool.")
    add = top.add_argument
    add("--endpoint", help="the pool (default: EMBEDPOOL_ENDPOINT, or the one of this machine)")
    add("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="where to listen (default 127.0.0.1:8080)")
    add("--grpc", default="", metavar="HOST:PORT", help="where to listen for AkiDB's gRPC (default: nowhere)")
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
    add("--log-format", default="auto", choices=("auto", "plain", "json", "journal"), help="of the lines on stderr")
    add("--tokenizer", default="", help=argparse.SUPPRESS)  # a supervisor's: TokenizerSpec as JSON
    for name in ("--lifeline", "--listen-fd", "--ready-fd"):  # a supervisor's
        add(name, type=int, default=-1, metavar="FD", help=argparse.SUPPRESS)
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
        tokenizer=TokenizerSpec.from_json(arguments.tokenizer) if arguments.tokenizer else None,
        keys=read_keys(arguments.api_key_file) if arguments.api_key_file else (),
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    logs.begin("embedpool gateway", arguments.log_format)
    if arguments.lifeline >= 0:
        end_with(arguments.lifeline)
        name_process("embedpool-http")
    try:
        chosen = options(arguments)
        sock = _socket(arguments, keyed=bool(chosen.keys))
        grpc, held = _grpc_place(arguments, keyed=bool(chosen.keys))
        beside = _grpc(grpc) if grpc else None
    except ConfigError as error:
        log.error("%s", error.message)
        return 2
    # A descriptor per connection: have as many as we may.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    app = make_app(AsyncClient(arguments.endpoint), chosen, beside)
    served = run(app, sock, chosen.receive_timeout_s, lambda: _say_ready(arguments.ready_fd, grpc, sock))
    if held is not None:
        held.close()
    return 0 if served else CANNOT_BEGIN


def _socket(arguments: argparse.Namespace, *, keyed: bool) -> socket.socket:
    if arguments.listen_fd >= 0:
        return socket.socket(fileno=arguments.listen_fd)
    return bind(*_parsed(arguments.listen, keyed))[0]


def _grpc_place(arguments: argparse.Namespace, *, keyed: bool) -> tuple[str, socket.socket | None]:
    """Its HOST:PORT, "" for none, and the socket that holds the port where no supervisor does."""
    if not arguments.grpc or arguments.listen_fd >= 0:
        return arguments.grpc, None
    held = reserve(*_parsed(arguments.grpc, keyed))
    return where(held), held


def _grpc(address: str) -> Beside:
    """Loaded here: who does not ask for it needs neither gRPC nor protobuf."""
    try:
        from embedpool.gateway.grpc_akidb import serving
    except ModuleNotFoundError as missing:
        raise ConfigError(f"--grpc needs {missing.name}: pip install 'embedpool[grpc]'") from missing
    return partial(serving, address)


def _parsed(listen: str, keyed: bool) -> tuple[str, int]:
    host, port = parse_listen(listen)
    if not is_loopback(host) and not keyed:
        log.warning(OPEN_DOOR, host)
    return host, port


def _say_ready(fd: int, grpc: str, sock: socket.socket) -> None:
    if fd >= 0:
        os.write(fd, b"1")
        os.close(fd)
    else:
        also = f"grpc://{grpc} and " if grpc else ""
        print(f"embedpool gateway listens on {also}{url(sock)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
