"""The directory of prepared models: one folder an artifact, named by what it was made from and for which machine.

Rules
1. An artifact appears whole or not at all: it is written aside, synced, and renamed. Whoever finds one may map it at once.
2. One process prepares at a time, under a lock that the kernel drops with it. What a killed one left aside is removed by the
   next one that has the lock.
3. The name holds a digest of the source, the runtime's version and the processor's features: a copy that was made for
   another machine would load and give right vectors, but silently use private memory. It is never found here.
4. A file's digest is remembered by path, size, time and inode, so that a gigabyte is read once and not at every start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

from embedpool.errors import ModelError
from embedpool.models.spec import ModelSpec

FORMAT = 3  # of artifacts; raised when what is made from the same source, or is said of it, changes
NOTE = "artifact.json"
ASIDE = ".new-"
SETTLED_S = 2.0  # a file changed less than this ago may change again within its time stamp's grain
# What ONNX Runtime's kernels choose by: the packed form of weights depends on it (mlas/lib/platform.cpp).
_X86 = (
    *("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx_ne_convert"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
_ARM = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What an artifact is made for."""

    arch: str
    features: tuple[str, ...]
    runtime: str  # ONNX Runtime's version


def this_machine() -> Machine:
    features = cpu_features(_read_text(Path("/proc/cpuinfo")))
    return Machine(arch=platform.machine(), features=features, runtime=runtime_version())


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """The features, of those that matter, that every core of /proc/cpuinfo has."""
    common = processor_flags(cpuinfo)
    return tuple(name for name in (*_X86, *_ARM) if name in common)


def processor_flags(cpuinfo: str) -> frozenset[str]:
    """All that every core of /proc/cpuinfo has."""
    found = [frozenset(line.split()) for line in re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)]
    return frozenset.intersection(*found) if found else frozenset()


def runtime_version() -> str:
    """ONNX Runtime's version, by its package: importing it would take longer than finding an artifact."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return version(packages_distributions()["onnxruntime"][0])  # a build under another name; looks at every package


@dataclass(frozen=True, slots=True)
class Artifact:
    """A prepared model. `note` is what was written down when it was made, {} where that cannot be read."""

    path: Path
    note: dict[str, Any]

    @property
    def spec(self) -> ModelSpec:
        """With the directory in which the artifact lies now."""
        return ModelSpec.from_json(json.dumps({**self.note["spec"], "directory": str(self.path)}))

    @property
    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())

    def is_whole(self) -> bool:
        """Whether every file has the size that was written down. A name that is found says the rest."""
        sizes = self.note.get("files")
        parts = (sizes, self.note.get("spec"), self.note.get("machine"))
        if self.note.get("format") != FORMAT or not all(isinstance(part, dict) for part in parts):
            return False
        try:
            return all((self.path / name).stat().st_size == size for name, size in (sizes or {}).items())
        except OSError:
            return False

    def stale(self, machine: Machine) -> str:
        """Why this artifact is of no use on this machine; "" if it is."""
        if not self.is_whole():
            return "damaged, or of another version of embedpool"
        made_for = self.note["machine"]
        if made_for.get("runtime") != machine.runtime:
            return f"for ONNX Runtime {made_for.get('runtime')}, here is {machine.runtime}"
        if (made_for.get("arch"), tuple(made_for.get("features") or ())) != (machine.arch, machine.features):
            return "for another processor"
        changed = [row["path"] for row in self.note.get("sources") or () if not _is_unchanged(row)]
        return f"made from {changed[0]}, which is gone or was changed" if changed else ""


class Cache:
    """The cache directory `root`, which is made when it is first written to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts = root / "artifacts"

    def find(self, name: str) -> Artifact | None:
        """The whole artifact of that directory name."""
        found = _artifact(self.artifacts / name)
        return found if found is not None and found.is_whole() else None

    def all(self) -> list[Artifact]:
        """Every directory that is or was an artifact, by name."""
        if not self.artifacts.is_dir():
            return []
        found = (_artifact(path) for path in sorted(self.artifacts.iterdir()) if not path.name.startswith(ASIDE))
        return [artifact for artifact in found if artifact is not None]

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Alone in the cache; calls `waiting` once if somebody else is there. Raises ModelError if it cannot be written."""
        try:
            self.artifacts.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ModelError(self._no_permission(error)) from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(fd, fcntl.LOCK_EX)  # ends when the other one does: it is a process that prepares a model
            for left in self.artifacts.glob(ASIDE + "*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(fd)

    def _no_permission(self, error: OSError) -> str:
        others = {why for artifact in self.all() if (why := artifact.stale(this_machine()))}
        hint = f"; what is in it is {', '.join(sorted(others))}" if others else ""
        return (
            f"the cache {self.root} cannot be written ({error.strerror}), and the model is not prepared in it: give another"
            f" --cache or EMBEDPOOL_CACHE{hint}"
        )

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A directory aside that becomes the artifact `name` if nothing is raised. Call with the lock held."""
        aside, target = self.artifacts / f"{ASIDE}{name}", self.artifacts / name
        aside.mkdir()
        try:
            yield aside
            _sync(aside)
            if target.exists():
                shutil.rmtree(target)  # it was not whole, or it would have been found
            aside.rename(target)
            _sync_directory(self.artifacts)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise

    def remove(self, artifact: Artifact) -> None:
        """Processes that have mapped it keep it until they end."""
        shutil.rmtree(artifact.path, ignore_errors=True)

    def needs(self, nbytes: int, what: str) -> None:
        """Raises ModelError if so many bytes are not free."""
        free = shutil.disk_usage(self.artifacts).free
        if free < nbytes:
            raise ModelError(
                f"preparing {what} takes about {nbytes / 1e6:.0f} MB in {self.root}, and {free / 1e6:.0f} MB are free: make"
                " room (embedpool models --clean), or give another --cache"
            )

    def remembered(self, name: str, read: Callable[[], list[str]]) -> list[str]:
        """What `read` gave when it was first asked for under this name."""
        memory = self.root / "digests" / f"{name}.json"
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(memory.read_text())
            if isinstance(found, list):
                return [str(each) for each in found]
        made = read()
        self._remember(memory, made)
        return made

    def _remember(self, memory: Path, value: Any) -> None:
        with contextlib.suppress(OSError):  # a cache that cannot be written forgets
            memory.parent.mkdir(parents=True, exist_ok=True)
            aside = memory.with_suffix(f".{os.getpid()}")
            aside.write_text(json.dumps(value))
            aside.replace(memory)

    def digest(self, file: Path) -> str:
        """sha256 of a file, from memory if it is unchanged."""
        row = _identity(file)
        memory = self.root / "digests" / (hashlib.sha256(os.fsencode(file)).hexdigest()[:32] + ".json")
        try:
            known = json.loads(memory.read_text())
            if {name: known[name] for name in row} == row:
                return str(known["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        found = _sha256(file)
        if time.time() - file.stat().st_mtime > SETTLED_S and _identity(file) == row:
            self._remember(memory, {**row, "sha256": found})
        return found


def note(spec: ModelSpec, machine: Machine, sources: dict[Path, str], directory: Path, more: dict[str, Any]) -> None:
    """Writes down beside an artifact's files what it is, so that it can be found, listed and judged."""
    import msgspec

    content = {
        "format": FORMAT,
        "spec": msgspec.to_builtins(spec),
        "machine": msgspec.to_builtins(machine),
        "sources": [{**_identity(path), "sha256": digest} for path, digest in sources.items()],
        "files": {file.name: file.stat().st_size for file in sorted(directory.iterdir()) if file.is_file()},
        **more,
    }
    (directory / NOTE).write_text(json.dumps(content, indent=1))


def _artifact(path: Path) -> Artifact | None:
    if not path.is_dir():
        return None
    try:
        found = json.loads(_read_text(path / NOTE))
    except ValueError:
        found = {}
    return Artifact(path, found if isinstance(found, dict) else {})


def _identity(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"path": str(file), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _is_unchanged(row: dict[str, Any]) -> bool:
    try:
        return all(row[name] == value for name, value in _identity(Path(row["path"])).items())
    except (OSError, KeyError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sync(directory: Path) -> None:
    for file in directory.iterdir():
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
