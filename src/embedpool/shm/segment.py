"""The files behind shared memory, and the only `mmap` of the project.

Rules
1. The server creates: O_EXCL, a random 128-bit name, mode 0640, every byte allocated at once. A full tmpfs is therefore an
   error here and never a SIGBUS in a worker (`ftruncate` alone succeeds and the first touch kills).
2. Workers map read-write, by name inside the directory that they were started with; a client maps read-only from a
   read-only descriptor, so it can neither write, truncate nor grow the file.
3. A client holds a shared flock for as long as it lives. `is_abandoned` is true when the kernel has let it go.
4. Nobody unmaps while an array looks at the mapping: a map ends when its last array is collected.
5. The creator unlinks. After its death, the next start sweeps the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedpool.errors import SegmentError
from embedpool.shm.sweep import SUFFIX


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as its creator sees it: a name and a descriptor, no mapping."""

    path: Path
    size: int
    fd: int

    @property
    def name(self) -> str:
        return self.path.name

    def is_abandoned(self) -> bool:
        """True when no client holds its shared lock. Takes and drops the exclusive lock: microseconds, never waits."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True

    def remove(self) -> None:
        """Unlinks and closes. Those who still map it keep their pages until they let go."""
        self.path.unlink(missing_ok=True)
        os.close(self.fd)


def create(directory: Path, size: int) -> Segment:
    """A new segment of `size` bytes, all of them allocated.

    Raises SegmentError when the file system has no room (it says how many bytes are missing), or no descriptor is left.
    """
    path = directory / (secrets.token_hex(16) + SUFFIX)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        raise SegmentError(f"no shared-memory segment could be created: {error.strerror}") from error
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise SegmentError(_no_room(directory, size, error)) from error
    return Segment(path, size, fd)


def _no_room(directory: Path, size: int, error: OSError) -> str:
    if error.errno != errno.ENOSPC:
        return f"a segment of {size} bytes could not be allocated: {error.strerror}"
    stat = os.statvfs(directory)
    free = stat.f_bavail * stat.f_frsize
    return (
        f"a segment of {size} bytes does not fit into shared memory: {max(size - free, 0)} bytes are missing"
        f" ({free} are free; containers give 64 MB unless started with a larger --shm-size)"
    )


class WriteMap:
    """A worker's mapping, read-write. Raises SegmentError when the segment is gone or not of the stated size."""

    def __init__(self, directory: Path, name: str, size: int) -> None:
        if "/" in name or not name.endswith(SUFFIX):
            raise SegmentError("a segment's name is a plain file name")
        self._map = _map(directory / name, os.O_RDWR, size)

    def room(self, offset: int, n: int) -> NDArray[np.uint8]:
        """uint8[n] at `offset`, writable. The caller has checked the bounds (shm.layout.fits)."""
        return np.frombuffer(self._map, np.uint8, n, offset)


class ReadMap:
    """A client's mapping: read-only, and the client's sign of life.

    Arrays keep the pages alive; `close` gives up the sign of life and leaves the arrays as they are.
    """

    def __init__(self, path: str, size: int) -> None:
        """Raises SegmentError when the segment is gone, not readable for us, or not of the stated size."""
        self._fd = _open_shared(path)
        try:
            # The server holds the exclusive lock for microseconds at a time (is_abandoned), so this waits no longer.
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            # Opened twice: `mmap` keeps a duplicate of its descriptor until the last array is gone, and a duplicate of
            # the locked one would keep the sign of life too.
            fd = _open_shared(path)
            try:
                if os.fstat(fd).st_size != size:
                    raise SegmentError("the session's segment is not of the stated size")
                self._map = _mapped(fd, size, mmap.PROT_READ)
            finally:
                os.close(fd)
        except BaseException:
            self.close()
            raise
        self.size = size

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()

    def room(self, offset: int, n: int) -> NDArray[np.uint8]:
        """uint8[n] at `offset`, not writable; keeps the mapping alive."""
        return np.frombuffer(self._map, np.uint8, n, offset)

    def close(self) -> None:
        """Idempotent. The lock goes with the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _open_shared(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise SegmentError(f"the session's segment cannot be opened: {error.strerror}") from error


def _map(path: Path, flags: int, size: int) -> mmap.mmap:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise SegmentError(f"segment cannot be opened: {error.strerror}") from error
    try:
        if os.fstat(fd).st_size != size:
            raise SegmentError("segment is not of the stated size")
        return _mapped(fd, size, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)


def _mapped(fd: int, size: int, access: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, size, mmap.MAP_SHARED, access)
    except OSError as error:  # no descriptor for its duplicate, or no room in the address space
        raise SegmentError(f"a segment of {size} bytes cannot be mapped: {error.strerror}") from error
