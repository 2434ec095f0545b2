"""The HTTP processes of a pool: their sockets, which are held here, and how they are started.

A gateway that ends leaves its socket to the next one: who connects meanwhile waits, and is not refused. gRPC's library takes no
socket, so of its port only the place is held here: who connects to it meanwhile is refused, and tries again.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Sequence

import msgspec

from embedpool.config import Config
from embedpool.errors import ConfigError
from embedpool.gateway.address import bind, is_loopback, parse_listen, reserve, url, where
from embedpool.gateway.options import COMPATS, read_keys
from embedpool.gateway.tokens import TokenizerSpec
from embedpool.models.spec import ModelSpec
from embedpool.supervise.processes import Child, ready_pipe, spawn
from embedpool.supervise.slots import Slot

TOKENIZER = "tokenizer.json"  # of an artifact; models.encoder, which must not be imported here, has it too
OF_GRPC = ("grpc", "google.protobuf")
NEEDED = ("starlette", "uvicorn", "httptools", "uvloop", "prometheus_client")


class Gateways:
    """`url` and `grpc_url` are "" where none are wanted. Raises ConfigError for an address that cannot be had, and whatever
    else is wrong with the settings: nothing of a pool has been started then."""

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self.url = self.grpc_url = ""
        self.slots: list[Slot] = []
        self._sockets: list[socket.socket] = []
        self._held: socket.socket | None = None
        _check(config)
        if config.http:
            self._sockets = bind(*_parsed(config, config.http, warn), config.http_workers)
            self.url = url(self._sockets[0])
            self.slots = [Slot(f"gateway {number}") for number in range(config.http_workers)]
        if config.grpc:
            try:
                self._held = reserve(*_parsed(config, config.grpc, warn))
            except ConfigError:
                self.close()
                raise
            self.grpc_url = f"grpc://{where(self._held)}"

    def start(self, slot: Slot, config: Config, spec: ModelSpec, lifeline: int) -> tuple[Child, int]:
        """The gateway, and the end of a pipe from which a byte can be read once it answers."""
        with ready_pipe() as (ready, tell):
            fds = [self._sockets[self.slots.index(slot)].fileno(), lifeline, tell]
            named = [f"--{name}={fd}" for name, fd in zip(("listen-fd", "lifeline", "ready-fd"), fds, strict=True)]
            if self._held is not None:
                named.append(f"--grpc={where(self._held)}")
            return spawn("gateway", "embedpool.gateway", [*named, *arguments(config, spec)], fds), ready

    def close(self) -> None:
        for sock in (*self._sockets, *([self._held] if self._held is not None else [])):
            sock.close()


def arguments(config: Config, spec: ModelSpec) -> list[str]:
    """A gateway's flags, from the pool's settings and its model."""
    tokenizer = TokenizerSpec(f"{spec.directory}/{TOKENIZER}", spec.lowercase, spec.prompts)
    return [
        f"--endpoint={config.endpoint_url()}",
        f"--max-client-batch-size={config.http_max_batch}",
        f"--timeout-s={config.http_timeout_s}",
        f"--log-format={config.log_format}",
        *[f"--compat={name}" for name in words(config.http_compat)],
        *[f"--model-alias={name}" for name in words(config.http_model_alias)],
        *([f"--tokenizer={msgspec.json.encode(tokenizer).decode()}"] if spec.directory else []),
        *([f"--api-key-file={config.http_api_key_file}"] if config.http_api_key_file else []),
    ]


def words(text: str) -> Sequence[str]:
    """Of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def _check(config: Config) -> None:
    """Raises ConfigError."""
    if config.grpc and not config.http:
        raise ConfigError("grpc is served by the HTTP processes: give --http too")
    for wanted, names, extra in ((config.http, NEEDED, "http"), (config.grpc, OF_GRPC, "grpc")):
        missing = [name for name in names if wanted and not is_there(name)]
        if missing:
            raise ConfigError(f"{extra} needs {', '.join(missing)}: pip install 'embedpool[{extra}]'")
    for name in words(config.http_compat):
        if name not in COMPATS:
            raise ConfigError(f"http_compat is a list of {', '.join(COMPATS)}: {name!r}")
    if config.http and config.http_api_key_file:
        read_keys(config.http_api_key_file)


def is_there(library: str) -> bool:
    """Whether it is installed. Loads nothing but the packages that it is in."""
    try:
        return importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def _parsed(config: Config, listen: str, warn: Callable[[str], None]) -> tuple[str, int]:
    host, port = parse_listen(listen)
    if not is_loopback(host) and not config.http_api_key_file:
        warn(f"{host} is reachable from other machines, and anybody there may use it: give --http-api-key-file")
    return host, port
