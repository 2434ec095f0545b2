"""The runtime directory: made, locked, swept, left clean. Called by the supervisor only.

Rules
1. One pool per directory, by a flock that the kernel drops with the process; its file names the holder.
2. Only the holder of the lock deletes anything in the directory.
3. The lock file is unlinked by its holder at the end; a starter therefore checks, once it has the lock, that the file it
   locked is still the one in the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from embedpool.errors import AlreadyRunning, ConfigError
from embedpool.shm.sweep import sweep
from embedpool.supervise.processes import end_recorded

LOCK, RECORD, SEGMENTS, WORKERS = "lock", "processes.json", "segments", "workers.sock"


@dataclass(slots=True)
class Place:
    """A locked runtime directory. `found` says in words what a pool that was killed had left here, "" if nothing."""

    path: Path
    endpoint: str
    lock: int
    found: str

    @property
    def segments(self) -> Path:
        return self.path / SEGMENTS

    @property
    def record(self) -> Path:
        return self.path / RECORD

    @property
    def workers_endpoint(self) -> str:
        return f"ipc://{self.path / WORKERS}"

    def leave(self) -> None:
        """Removes all that is ours, the lock last; the directory itself too, if it is empty then."""
        sweep(self.segments)
        with contextlib.suppress(OSError):
            self.segments.rmdir()
        # The router unlinks its sockets; one that was killed just now did not.
        sockets = [Path(self.endpoint.removeprefix("ipc://"))] if self.endpoint.startswith("ipc://") else []
        for path in (self.record, *sockets, self.path / WORKERS, self.path / LOCK):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()
        os.close(self.lock)


def enter(path: Path, endpoint: str) -> Place:
    """Makes, locks and sweeps the directory.

    Raises AlreadyRunning naming the process that holds it or serves the endpoint; ConfigError when it cannot be used.
    """
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise ConfigError(f"runtime directory {path} belongs to another user: choose another --runtime-dir")
        if stat.S_IMODE(status.st_mode) & 0o022:
            raise ConfigError(f"runtime directory {path} can be written by others: chmod 750 {path}")
        lock = _lock(path)
    except OSError as error:
        raise ConfigError(f"runtime directory {path} cannot be used: {error.strerror}") from error
    try:
        return Place(path, endpoint, lock, _swept(path, endpoint))
    except BaseException as error:
        os.close(lock)
        if isinstance(error, OSError):
            raise ConfigError(f"runtime directory {path} cannot be used: {error.strerror}") from error
        raise


def _lock(path: Path) -> int:
    while True:
        path.mkdir(mode=0o750, exist_ok=True)  # a pool that just left may have taken it along
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # who may open it may lock it
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise AlreadyRunning(f"a pool already runs on {path}: {holder}. Stop it, or give --runtime-dir") from None
        try:
            if os.stat(path / LOCK).st_ino == os.fstat(fd).st_ino:
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"process {os.getpid()}\n".encode(), 0)
                return fd
        except FileNotFoundError:
            pass  # the holder before us unlinked it just now: lock the new one
        except OSError:  # the disk is full
            (path / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.rmdir()
            os.close(fd)
            raise
        os.close(fd)


def _swept(path: Path, endpoint: str) -> str:
    processes = end_recorded(path / RECORD)
    if endpoint.startswith("ipc://"):
        _free(Path(endpoint.removeprefix("ipc://")))
    (path / WORKERS).unlink(missing_ok=True)
    # Clients of the group pass through, each to its own: the names, 128 random bits, are not for them to list.
    (path / SEGMENTS).mkdir(mode=0o710, exist_ok=True)
    segments = sweep(path / SEGMENTS)
    if not processes and not segments:
        return ""
    return f"a pool that was killed had left {processes} processes and {segments} segments here: removed"


def _free(path: Path) -> None:
    """Unlinks a socket that nobody listens on. ZeroMQ's bind would take a living one away from its owner without a word."""
    if not path.exists():
        return
    if not path.is_socket():
        raise ConfigError(f"{path} exists and is no socket: give another --endpoint")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"{path} cannot be looked at: {error.strerror}") from error
    raise AlreadyRunning(f"another process already listens on {path}: stop it, or give another --endpoint")
