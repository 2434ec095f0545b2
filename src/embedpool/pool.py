"""A private pool for a script, a notebook or a test: a supervisor of one's own, and a client of it."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from embedpool.client import Client
from embedpool.client.sync import SEGMENT_BYTES
from embedpool.config import SOCKET, flag, is_tmpfs
from embedpool.errors import ModelError, PoolFailed

START_S = 180.0  # a model may have to be downloaded first
END_S = 10.0
COMMAND = (sys.executable, "-P", "-m", "embedpool")


class Pool(Client):
    """`with Pool(model="minilm", workers=2) as pool:` starts workers that nobody else uses, and ends them.

    The same methods as Client. `settings` are those of config.Config by name. Nothing is left behind: at close(), or when
    this process ends in any way, the pool ends and its directory goes. Raises ModelError or PoolFailed with the pool's own
    words when it cannot start.
    """

    def __init__(
        self,
        model: str = "minilm",
        *,
        workers: int | str = "auto",
        segment_bytes: int = SEGMENT_BYTES,
        expect_fingerprint: str = "",
        command: Sequence[str] = COMMAND,
        **settings: Any,
    ) -> None:
        super().__init__("ipc://", segment_bytes=segment_bytes, expect_fingerprint=expect_fingerprint)
        self._settings = {"model": model, "workers": workers, **settings}
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path()
        self._owner = -1
        self._owned_by = os.getpid()

    def _reset(self) -> None:
        super()._reset()
        self._starting = threading.Lock()

    def start(self) -> None:
        """Starts the pool and waits until it can answer. Called by `with` and by the first request; idempotent."""
        with self._starting:
            if self._process is None:
                self._launch()

    def _launch(self) -> None:
        tmpfs = Path("/dev/shm")
        self._directory = Path(tempfile.mkdtemp(prefix="embedpool-", dir=tmpfs if is_tmpfs(tmpfs) else None))
        # Said outright: EMBEDPOOL_ENDPOINT, if it is set, names another pool.
        place = {"runtime_dir": str(self._directory), "endpoint": f"ipc://{self._directory / SOCKET}"}
        process, self._owner = _start(self._command, {**self._settings, **place})
        self._process, self._owned_by = process, os.getpid()
        try:
            self.endpoint = str(_ready(process)["endpoint"])
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def _connect(self, deadline_at: float) -> None:
        self._check_open()
        self.start()
        super()._connect(deadline_at)

    def close(self) -> None:
        """Ends the session and the pool. Arrays stay valid. Idempotent."""
        super().close()
        self._end()

    @property
    def pid(self) -> int:
        """The supervisor's process id; 0 before the start."""
        return self._process.pid if self._process is not None else 0

    def _end(self) -> None:
        if self._process is None or self._owned_by != os.getpid():
            return  # not started; or a forked child's copy, whose pool is its parent's
        process, self._process = self._process, None
        try:
            process.send_signal(signal.SIGTERM)
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        finally:
            _owners.discard(self._owner)
            os.close(self._owner)  # ends it even if we were interrupted
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            shutil.rmtree(self._directory, ignore_errors=True)


def _start(command: Sequence[str], settings: Mapping[str, Any]) -> tuple[subprocess.Popen[bytes], int]:
    """The supervisor, and the end of the pipe whose closing ends it."""
    theirs, ours = os.pipe()
    flags = [f"{flag(name)}={str(value).lower() if isinstance(value, bool) else value}" for name, value in settings.items()]
    try:
        process = subprocess.Popen(
            [*command, "serve", "--ready-json", f"--owner-fd={theirs}", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(theirs,),
            process_group=0,
        )
    finally:
        os.close(theirs)
    _owners.add(ours)
    return process, ours


_owners: set[int] = set()


def _after_fork() -> None:
    """A forked child must not hold the pipe open: the pool would outlive its owner."""
    for fd in _owners:
        os.close(fd)
    _owners.clear()


os.register_at_fork(after_in_child=_after_fork)


def _ready(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What `serve --ready-json` prints once it serves. Raises what it says instead."""
    assert process.stdout is not None
    deadline_at = time.monotonic() + START_S
    if not select.select([process.stdout], [], [], deadline_at - time.monotonic())[0]:
        raise PoolFailed(f"the pool was not ready within {START_S:.0f} s")
    line = process.stdout.readline()
    found: dict[str, Any] = json.loads(line) if line else {"error": "the pool ended before it was ready"}
    if "error" in found:
        raise (ModelError if process.wait() == 2 else PoolFailed)(found["error"])
    return found
