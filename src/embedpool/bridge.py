"""`embedpool-bridge`: the child process that AkiDB talks to over stdin and stdout, as a thin client of a pool.

AkiDB runs one word with one argument, the path of its own script, which is ignored; so all settings come from the environment:

    EMBEDPOOL_ENDPOINT          the pool, by the rule of every client
    EMBEDPOOL_BRIDGE            "private": start a pool of one's own where none answers that serves the model
    EMBEDPOOL_BRIDGE_TIMEOUT_S  how long one request may take (30)
    AKIDB_EMBEDDING_DTYPE       float32, q8, q4 or uint8: the precision that the pool must have

Rules
1. One JSON object per line; replies strictly in the order of requests, one for each line that is not blank. There is no id: one
   line too many shifts every later answer, so the descriptor of stdout is kept for replies alone, and 1 points at stderr.
2. Requests run in threads, several at once; `lines` reads them and writes their replies in order.
3. AkiDB waits for ever and restarts nothing: every request has a deadline here, and a pool that comes back is used again.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson

from embedpool.client import Client
from embedpool.config import find_endpoint
from embedpool.errors import Cancelled, ConfigError, EmbedpoolError, NotRunning, TimedOut
from embedpool.lines import serve
from embedpool.naming import is_same_model, own_name_of
from embedpool.pool import Pool
from embedpool.protocol import ModelCard

AT_ONCE = 8  # requests in the pool: enough that every worker has the next one waiting
LOOK_S = 0.5  # for a shared pool, before a private one is started
PAUSE_S = 0.05  # before a refused request is tried again, where the pool does not say
LOAD_S = 600.0  # a private pool may have to fetch and prepare its model
PRECISIONS = {"": "", "float32": "fp32", "q8": "q8", "q4": "q4", "uint8": "uint8"}


class Params(msgspec.Struct, frozen=True):
    """The fields of all methods. `cache_dir` is not among them: a pool has its own cache."""

    model: str = ""
    inputs: list[str] = []
    normalize: bool = True


class Request(msgspec.Struct, frozen=True):
    method: str = ""
    params: Params = Params()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says."""

    endpoint: str
    private: bool = False
    precision: str = ""  # "": whatever the pool has
    timeout_s: float = 30.0

    @staticmethod
    def read(environ: Mapping[str, str]) -> Settings:
        """Raises ConfigError."""
        dtype, mode = environ.get("AKIDB_EMBEDDING_DTYPE", ""), environ.get("EMBEDPOOL_BRIDGE", "shared")
        if dtype not in PRECISIONS:
            raise ConfigError(f"AKIDB_EMBEDDING_DTYPE is float32, q8, q4 or uint8, not {dtype!r}")
        if mode not in ("shared", "private"):
            raise ConfigError(f"EMBEDPOOL_BRIDGE is shared or private, not {mode!r}")
        try:
            timeout_s = float(environ.get("EMBEDPOOL_BRIDGE_TIMEOUT_S", "30"))
        except ValueError:
            timeout_s = 0.0
        if not 0.0 < timeout_s <= 86_400.0:
            raise ConfigError("EMBEDPOOL_BRIDGE_TIMEOUT_S is a number of seconds above 0")
        return Settings(
            endpoint=find_endpoint(environ), private=mode == "private", precision=PRECISIONS[dtype], timeout_s=timeout_s
        )


class Refusal(Exception):
    """Becomes an error reply with this text."""


# ── pools ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_pool(asked: str, settings: Settings) -> tuple[Client, ModelCard]:
    """A pool that serves the model, and what it says of it: the shared one, or a private one if that is wanted. Raises Refusal,
    and for a private pool that cannot be started what Pool.start does."""
    patience_s = LOOK_S if settings.private else settings.timeout_s
    client = Client(settings.endpoint, connect_timeout_s=patience_s)
    try:
        card = client.model(timeout_s=patience_s)
        check(asked, card, settings.precision)
    except (EmbedpoolError, Refusal) as error:
        client.close()
        if not settings.private:
            raise Refusal(str(error)) from error
        client = _private(asked, settings)
        card = client.model(timeout_s=settings.timeout_s)
    return client, card


def check(asked: str, card: ModelCard, precision: str) -> None:
    """Raises Refusal where the pool's vectors are not those that are asked for."""
    if not is_same_model(asked, card.name):
        raise Refusal(f"the pool serves {card.name}, not {asked}: start it with --model {asked}")
    if precision and precision != card.precision:
        raise Refusal(
            f"the pool serves {card.name} in {card.precision}, and AKIDB_EMBEDDING_DTYPE asks for {precision}:"
            f" start it with --precision {precision}, or unset AKIDB_EMBEDDING_DTYPE"
        )


def _private(asked: str, settings: Settings) -> Pool:
    """A pool that ends with this process, however that ends."""
    pool = Pool(asked, precision=settings.precision or "auto")
    pool.start()
    threading.Thread(target=_close_when_ended, args=(pool, os.pidfd_open(pool.pid)), daemon=True).start()
    return pool


class Loaded:
    """A model that can be asked for vectors, whoever serves it. Used by several threads."""

    def __init__(self, asked: str, settings: Settings, client: Client, card: ModelCard) -> None:
        self._asked = asked
        self._settings = settings
        self._client = client
        self._lock = threading.Lock()
        self.card = card

    def embed(self, inputs: list[str], normalize: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32[len(inputs), dim]. Tries again what may be tried again, until the deadline. Raises EmbedpoolError."""
        deadline_at = time.monotonic() + self._settings.timeout_s
        while True:
            client = self._client
            try:
                left_s = deadline_at - time.monotonic()
                # By the pool's own name: one that comes back with another model refuses.
                return client.embed(inputs, timeout_s=left_s, model=self.card.name, normalize=normalize)
            except Cancelled:  # a private pool has ended
                self._replace(client, deadline_at)
            except EmbedpoolError as error:
                pause_s = PAUSE_S if error.retry_after_ms is None else error.retry_after_ms / 1e3
                if not error.retryable or time.monotonic() + pause_s >= deadline_at:
                    raise
                time.sleep(pause_s)

    def _replace(self, ended: Client, deadline_at: float) -> None:
        """Another pool in place of the one that has ended; one thread starts it, the others wait for that."""
        if not self._lock.acquire(timeout=max(0.0, deadline_at - time.monotonic())):
            raise TimedOut("no answer in time: the pool is being started again")
        try:
            if self._client is ended:
                self._client, self.card = find_pool(self._asked, self._settings)
        except Refusal as error:
            raise NotRunning(str(error)) from error
        finally:
            self._lock.release()

    def close(self) -> None:
        """Ends the session, and the pool if it is our own."""
        self._client.close()


def _load(asked: str, settings: Settings) -> Loaded:
    return Loaded(asked, settings, *find_pool(asked, settings))


def _close_when_ended(pool: Pool, pidfd: int) -> None:
    """Whoever waits for a pool that has ended is told so, instead of waiting for its deadline."""
    select.select([pidfd], [], [])
    os.close(pidfd)
    pool.close()


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Bridge:
    """Answers requests: `submit` in the order in which they came, from one thread; each gives its reply's line."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="request")
        self._loads: dict[str, Future[Loaded]] = {}

    def submit(self, line: bytes) -> Future[bytes]:
        """What the line is answered with. Never raises: a line that is no request gets an error for its reply."""
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _now(failed(f"Invalid JSON: {error}"))
        model = request.params.model
        match request.method:
            case "ping":
                return _now(reply(status="ok", message="pong"))
            case "load_model":
                load = self._load(model)
                return self._threads.submit(_answered, lambda: _loaded(model, load))
            case "embed_batch" if own_name_of(model) in self._loads:
                # The load before this request counts, also while it still runs.
                load, params = self._loads[own_name_of(model)], request.params
                return self._threads.submit(_answered, lambda: _embedded(load, params))
            case "embed_batch":
                return _now(failed(f"Model not loaded: {model}. Call load_model first."))
            case method:
                return _now(failed(f"Unknown method: {method}"))

    def _load(self, model: str) -> Future[Loaded]:
        """A model that is loaded, or being loaded, is not loaded twice; one that could not be is tried again."""
        load = self._loads.get(own_name_of(model))
        if load is None or (load.done() and load.exception() is not None):
            load = self._loads[own_name_of(model)] = self._threads.submit(_load, model, self._settings)
        return load

    def close(self) -> None:
        """Ends sessions, and pools of our own. What nobody has begun to answer is dropped: nobody reads it any more."""
        self._threads.shutdown(cancel_futures=True)
        for load in self._loads.values():
            if not load.cancelled() and load.exception() is None:
                load.result().close()


def _answered(work: Callable[[], bytes]) -> bytes:
    try:
        return work()
    except EmbedpoolError as error:
        return failed(error.message)
    except Refusal as error:
        return failed(str(error))
    except TimeoutError:
        return failed("no answer in time: the model is still being loaded")
    except Exception as error:  # a reply is owed, whatever happened
        print(f"embedpool-bridge: {error!r}", file=sys.stderr)
        return failed("an internal error: see the bridge's stderr")


def _loaded(model: str, load: Future[Loaded]) -> bytes:
    card = load.result(LOAD_S).card
    return reply(status="ok", message=f"Model loaded: {model}", dimension=card.dim, providers=["CPUExecutionProvider"])


def _embedded(load: Future[Loaded], params: Params) -> bytes:
    try:
        loaded = load.result(LOAD_S)
    except (EmbedpoolError, Refusal):
        raise Refusal(f"Model not loaded: {params.model}. Call load_model first.") from None
    vectors = loaded.embed(params.inputs, params.normalize)
    # AkiDB checks neither count nor length nor values.
    if vectors.shape != (len(params.inputs), loaded.card.dim) or not np.isfinite(vectors).all():
        raise Refusal(
            f"the pool gave {vectors.shape} where ({len(params.inputs)}, {loaded.card.dim}) finite values are expected"
        )
    return reply(status="ok", embeddings=vectors, count=len(vectors))


def reply(**members: Any) -> bytes:
    """One line; float32 with the fewest digits that give the same float32 again."""
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


def failed(message: str) -> bytes:
    return reply(status="error", message=message.encode("utf-8", "replace").decode())


def _now(line: bytes) -> Future[bytes]:
    done: Future[bytes] = Future()
    done.set_result(line)
    return done


def main() -> int:
    """Exit status 0 at the end of stdin."""
    replies_fd = os.dup(1)
    os.dup2(2, 1)
    if not os.isatty(0):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for AkiDB, which may still want answers while it ends
    try:
        settings = Settings.read(os.environ)
    except ConfigError as error:
        print(f"embedpool-bridge: {error.message}", file=sys.stderr)
        return 2
    bridge = Bridge(settings)
    if not serve(bridge.submit, sys.stdin.buffer, replies_fd):
        bridge.close()
        os._exit(0)  # the reading thread may be inside stdin, where the interpreter's own end would wait for it
    bridge.close()
    return 0
