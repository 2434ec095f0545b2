"""Every setting, one row each, and where its value comes from: flag > environment > file > default.

A row is a field of Config: its name is the key in the TOML file, `--name-with-dashes` on the command line and
EMBEDPOOL_NAME in the environment. The only place that reads the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from embedpool.errors import ConfigError

PREFIX = "EMBEDPOOL_"
OF_MODEL = (
    *("model", "precision", "model_dir", "onnx_file", "pooling", "max_tokens", "output_range"),
    *("provider", "provider_options"),
)
SOCKET = "embedpool.sock"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path is 108 bytes with its end, unix(7)


def _row(default: Any, unit: str, help: str, low: float = 0, high: float = 2**62, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"unit": unit, "help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one pool."""

    model: str = _row("minilm", "", "a name that `embedpool models` lists, a directory, or a hub id owner/name[@revision]")
    precision: str = _row(
        "auto", "", "of the weights; q8 and q4 are made from fp32 if the model has no such file; auto: fp32 if it can be had",
        choices=("auto", "fp32", "fp16", "q8", "q4", "uint8"),
    )  # fmt: skip
    model_dir: str = _row(
        "", "", "where the files of --model are, if that is a known model's name and they are not from the hub"
    )
    onnx_file: str = _row("", "", "the ONNX file within the model's directory, if not the usual one of the precision")
    output_range: str = _row("", "", "MIN,MAX: what the codes 0 and 255 of a graph with uint8 output stand for")
    pooling: str = _row(
        "auto", "", "how tokens become one vector, where the model's files do not say",
        choices=("auto", "none", "mean", "cls", "last"),
    )  # fmt: skip
    max_tokens: int = _row(0, "tokens", "longest text that is read, at most the model's own; 0: the model's own")
    provider: str = _row(
        "cpu", "", "what computes: ONNX Runtime's own kernels, or an execution provider that is installed beside them",
        choices=("cpu", "openvino", "cuda", "tensorrt", "coreml"),
    )  # fmt: skip
    provider_options: str = _row(
        "", "", "key=value,key=value for it; openvino: precision=bf16 (its default), f32 or f16; see docs/providers.md"
    )
    workers: int = _row(
        0, "processes", "worker processes; auto or 0: one per physical core that this process may use, or per GPU", 0, 512
    )
    threads_per_worker: int = _row(
        1, "threads", "threads, and cores, of one worker: more for latency, 1 for throughput", 1, 256
    )
    pin: bool = _row(True, "", "pin each worker to its cores")
    endpoint: str = _row("", "", "ipc://PATH or tcp://127.0.0.1:PORT; empty: embedpool.sock in the runtime directory")
    runtime_dir: str = _row("", "", "directory for socket, lock and segments, on tmpfs; empty: see `embedpool config`")
    cache: str = _row("", "", "directory for prepared models; empty: ~/.cache/embedpool")
    slice_ms: float = _row(
        20.0,
        "ms",
        "longest estimated run of one job, which a query may wait for; of bulk work that is alone, up to eight times as long",
        1,
        10_000,
    )
    interactive_rows: int = _row(8, "rows", "requests of at most this many texts count as interactive", 0)
    hang_s: float = _row(10.0, "s", "a worker silent for this long on a job, and 20 times its estimate, is replaced", 0.1)
    drain_s: float = _row(30.0, "s", "at SIGTERM, how long accepted work may take", 0)
    start_timeout_s: float = _row(120.0, "s", "how long a worker may take from its start to ready", 1)
    max_worker_rss_mb: float = _row(
        0.0, "MB", "a worker with more resident memory, as `ps` shows it, is replaced once another one is ready; 0: never", 0
    )
    session_idle_s: float = _row(60.0, "s", "sessions without a segment are forgotten after this long without a message", 1)
    http: str = _row("", "", "HOST:PORT for AkiDB's, Text Embeddings Inference's and OpenAI's HTTP; empty: none")
    grpc: str = _row("", "", "HOST:PORT for AkiDB's gRPC, which the HTTP processes serve too; empty: none")
    http_workers: int = _row(1, "processes", "HTTP processes", 1, 64)
    http_api_key_file: str = _row("", "", "a file of keys, one per line: who asks over HTTP must show one as a bearer token")
    http_compat: str = _row(
        "", "", "the version meant where an HTTP dialect's differ: akidb-strict, tei-1.8, or both with a comma"
    )
    http_model_alias: str = _row("", "", "further names of the model for OpenAI's clients, with commas between; * for any")
    http_max_batch: int = _row(32, "texts", "in one request of Text Embeddings Inference's clients", 1, 8192)
    http_timeout_s: float = _row(30.0, "s", "for HTTP requests that do not say how long they may take", 0.001, 300.0)
    max_sessions: int = _row(256, "sessions", "clients at once", 1, 65_536)
    max_segment_bytes: int = _row(64 << 20, "bytes", "largest shared-memory segment of one client", 0)
    max_shm_bytes: int = _row(1 << 30, "bytes", "shared memory of all clients together", 0)
    max_request_rows: int = _row(8192, "rows", "texts in one request", 1, 1 << 17)
    max_request_bytes: int = _row(16 << 20, "bytes", "one request's message", 1024, 1 << 30)
    max_text_chars: int = _row(1_000_000, "characters", "one text", 1, 1 << 28)
    max_inline_bytes: int = _row(64 << 20, "bytes", "vectors in one answer to a client without a segment", 0, 1 << 30)
    max_queue_rows: int = _row(100_000, "rows", "texts waiting, of all clients", 1)
    max_queue_bytes: int = _row(256 << 20, "bytes", "requests waiting, of all clients", 1024)
    log_format: str = _row(
        "auto", "", "of log lines on stderr; auto: with journald's priorities under systemd, else for a person to read",
        choices=("auto", "plain", "json", "journal"),
    )  # fmt: skip

    traces: str = _row(
        "off", "", "OpenTelemetry spans of requests: to a collector, as OTEL_* variables say, or to stderr; see docs/traces.md",
        choices=("off", "otlp", "console"),
    )  # fmt: skip

    def runtime_path(self) -> Path:
        """The runtime directory of this pool."""
        return Path(self.runtime_dir).absolute() if self.runtime_dir else default_runtime_dir()

    def endpoint_url(self) -> str:
        """Where clients connect."""
        return self.endpoint or f"ipc://{self.runtime_path() / SOCKET}"

    def wanted_model(self) -> dict[str, Any]:
        """The settings that decide the model, and the cache: what models.resolve.Wanted holds."""
        return {**{name: getattr(self, name) for name in OF_MODEL}, "cache": str(self.cache_path())}

    def cache_path(self) -> Path:
        """The directory for prepared models."""
        return Path(self.cache).absolute() if self.cache else _cache_home() / "embedpool"


def rows() -> tuple[Field[Any], ...]:
    """Every setting's row, in order."""
    return fields(Config)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return PREFIX + name.upper()


def load(flags: Mapping[str, Any], file: str = "", environ: Mapping[str, str] | None = None) -> Config:
    """The settings in force. `flags` holds what was given on the command line; None means not given.

    Raises ConfigError naming the setting, where its value came from, and what it should be.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for name, value in (_read(file) if file else {}).items():
        values[name] = (value, f"in {file}")
    for row in rows():
        if variable(row.name) in environ:
            values[row.name] = (environ[variable(row.name)], f"from {variable(row.name)}")
        if flags.get(row.name) is not None:
            values[row.name] = (flags[row.name], f"from {flag(row.name)}")
    known = {row.name: row for row in rows()}
    config = Config(**{name: _parsed(known[name], value, origin) for name, (value, origin) in values.items()})
    _check_endpoint(config.endpoint_url(), values.get("endpoint", ("", "from the runtime directory"))[1])
    return config


def _read(file: str) -> dict[str, Any]:
    try:
        found = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"configuration file {file} cannot be read: {error}") from error
    unknown = sorted(set(found) - {row.name for row in rows()})
    if unknown:
        raise ConfigError(f"configuration file {file} has settings that do not exist: {', '.join(unknown)}")
    return found


def _parsed(row: Field[Any], value: Any, origin: str) -> Any:
    kind: type[Any] = type(row.default)
    if row.name == "workers" and value == "auto":
        return 0
    parsed = _as(kind, value)
    low, high, choices = row.metadata["low"], row.metadata["high"], row.metadata["choices"]
    if parsed is None or (kind in (int, float) and not low <= parsed <= high) or (choices and parsed not in choices):
        raise ConfigError(f"{row.name} must be {_wanted(row)}: {value!r} {origin}")
    return parsed


def _as(kind: type[Any], value: Any) -> Any:
    """The value as a setting of that kind, None if it is none. Strings are what flags and the environment give."""
    if kind is bool:
        return _bool(value)
    fitting = {int: (int, str), float: (int, float, str), str: (str,)}[kind]
    if isinstance(value, bool) or not isinstance(value, fitting):
        return None
    try:
        return kind(value)
    except (ValueError, OverflowError):
        return None


def _bool(value: Any) -> bool | None:
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())


def _wanted(row: Field[Any]) -> str:
    if row.metadata["choices"]:
        return "one of " + ", ".join(row.metadata["choices"])
    if isinstance(row.default, bool):
        return "true or false"
    if isinstance(row.default, str):
        return "a string"
    kind = "a whole number" if isinstance(row.default, int) else "a number"
    also = ", or auto" if row.name == "workers" else ""
    return f"{kind} from {row.metadata['low']:g} to {row.metadata['high']:g}{also}"


def _check_endpoint(url: str, origin: str) -> None:
    scheme, _, rest = url.partition("://")
    if scheme == "ipc" and rest.startswith("/"):
        if len(rest.encode()) > LONGEST_SOCKET_PATH:
            raise ConfigError(
                f"socket path {rest} ({origin}) is longer than {LONGEST_SOCKET_PATH} bytes: change it or --runtime-dir"
            )
        return
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and host in LOOPBACK and port.isdecimal() and 0 < int(port) < 65_536:
        return
    if scheme == "tcp" and host and host not in LOOPBACK:
        reason = "is not on loopback: messages are not encrypted, so only tcp://127.0.0.1:PORT is served"
    else:
        reason = "is not one of ipc:///PATH and tcp://127.0.0.1:PORT"
    raise ConfigError(f"endpoint {url} ({origin}) {reason}")


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def default_runtime_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where a pool lives if nothing is configured: the first of

    1. $RUNTIME_DIRECTORY, which systemd sets for a unit,
    2. $XDG_RUNTIME_DIR/embedpool, the user's own tmpfs,
    3. /run/embedpool for root, where /run is a tmpfs,
    4. /dev/shm/embedpool-UID.
    """
    environ = os.environ if environ is None else environ
    if environ.get("RUNTIME_DIRECTORY"):
        return Path(environ["RUNTIME_DIRECTORY"].partition(":")[0])
    if environ.get("XDG_RUNTIME_DIR"):
        return Path(environ["XDG_RUNTIME_DIR"]) / "embedpool"
    if os.geteuid() == 0 and is_tmpfs(Path("/run")):
        return Path("/run/embedpool")
    return Path(f"/dev/shm/embedpool-{os.geteuid()}")


def find_endpoint(environ: Mapping[str, str] | None = None) -> str:
    """Where a client connects if nothing is said: EMBEDPOOL_ENDPOINT, else the default runtime directory's socket, else the
    system service's, whichever is there first."""
    environ = os.environ if environ is None else environ
    if environ.get("EMBEDPOOL_ENDPOINT"):
        return environ["EMBEDPOOL_ENDPOINT"]
    own = environ.get("EMBEDPOOL_RUNTIME_DIR")
    # A client's own $RUNTIME_DIRECTORY, if it is a unit itself, says nothing of the pool's.
    users = {name: value for name, value in environ.items() if name != "RUNTIME_DIRECTORY"}
    places = [Path(own)] if own else [default_runtime_dir(users), Path("/run/embedpool")]
    for place in places:
        if _is_there(place / SOCKET):
            return f"ipc://{place / SOCKET}"
    return f"ipc://{places[0] / SOCKET}"


def _is_there(path: Path) -> bool:
    """Whether it exists, or lies where this user may not look: then it is meant, and connecting says what is missing."""
    try:
        return path.exists()
    except PermissionError:
        return True


def journal_stream(environ: Mapping[str, str] | None = None) -> str:
    """DEVICE:INODE of the journal, where systemd has connected a process to it; else "" (systemd.exec(5))."""
    return (os.environ if environ is None else environ).get("JOURNAL_STREAM", "")


def traces_begin_here(environ: Mapping[str, str] | None = None) -> bool:
    """Whether a request without a trace's context begins one: not where OTEL_TRACES_SAMPLER leaves all of these out."""
    sampler = (os.environ if environ is None else environ).get("OTEL_TRACES_SAMPLER", "")
    return sampler.strip().lower() not in ("always_off", "parentbased_always_off")


def traces_protocol(environ: Mapping[str, str] | None = None) -> str:
    """In which spans are wanted: the more special one of OpenTelemetry's two variables, else its default."""
    environ = os.environ if environ is None else environ
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    return next((environ[name] for name in names if environ.get(name)), "http/protobuf")


def most_waiting_spans(environ: Mapping[str, str] | None = None) -> int:
    """OTEL_BSP_MAX_QUEUE_SIZE, OpenTelemetry's default where that is no number above 0."""
    said = (os.environ if environ is None else environ).get("OTEL_BSP_MAX_QUEUE_SIZE", "")
    return int(said) if said.isdecimal() and int(said[:9]) > 0 else 2048


def visible_gpus(environ: Mapping[str, str] | None = None) -> str | None:
    """CUDA_VISIBLE_DEVICES, None where it is not set."""
    return (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")


def is_tmpfs(path: Path) -> bool:
    """Whether files in `path` are memory. False where /proc does not tell."""
    path, kind, best = path.resolve(), "", -1
    try:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            mount = left.split()[4]
            if path.is_relative_to(mount) and len(mount) >= best:
                kind, best = right.split()[0], len(mount)
    except OSError:
        return False
    return kind in ("tmpfs", "ramfs")


def _cache_home() -> Path:
    found = os.environ.get("CACHE_DIRECTORY") or os.environ.get("XDG_CACHE_HOME")
    return Path(found.partition(":")[0]) if found else Path.home() / ".cache"
