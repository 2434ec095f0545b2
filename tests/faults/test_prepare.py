"""Preparing a model that is cut off: by SIGKILL at any moment, by a full disk, by whoever else is at it.

| when \\ how                     | what is there afterwards            | the next start                       |
|--------------------------------|-------------------------------------|--------------------------------------|
| preparing is killed            | the whole artifact, or none         | makes it, and removes what was aside |
| its supervisor is killed       | no process                          | serves                               |
| the disk is too small          | nothing was written                 | says the same                        |
| the disk becomes full          | no artifact and nothing aside       | makes it, once there is room         |
| whoever holds the lock is killed | the lock is free                  | does not wait                        |
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedpool import Client
from embedpool.models.cache import ASIDE, Cache
from tests.fixtures import tiny
from tests.fixtures.random_models import MODELS, write_directory
from tests.process.test_prepare import Machine
from tests.support import alive, children, kill, launch, part, read_line, wait_until

STEP_S = 0.08
MOMENTS = 8  # of STEP_S each: preparing SLOW takes 0.6 s
SLOW = ("--precision", "q8")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 3 M weights: large enough to be caught in the middle, in whatever step it is."""
    place = tmp_path_factory.mktemp("slow")
    write_directory(place, MODELS["bert-mean"].of(num_hidden_layers=4, hidden_size=256, intermediate_size=1024))
    (place / "tokenizer.json").write_text(tiny.tokenizer())
    return place


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "tmp").mkdir()
    return Machine(tmp_path, {"TMPDIR": str(tmp_path / "tmp")})


def began(process: subprocess.Popen[str]) -> None:
    """Returns when it has the lock, has seen that there is room, and makes the artifact from now on."""
    line = read_line(process, 30.0)
    assert line.startswith("preparing "), line


def aside(machine: Machine) -> list[Path]:
    """What nobody would ever map: in the cache, and where temporary files go."""
    left = [path for path in machine.artifacts() if path.name.startswith(ASIDE)]
    return left + list(Path(machine.settings["TMPDIR"]).iterdir())


def test_preparing_may_be_killed_at_any_moment(machine: Machine, slow: Path) -> None:
    killed = 0
    for moment in range(MOMENTS):
        process = launch(["prepare", str(slow), *SLOW], machine.environ)
        began(process)
        try:
            process.wait(moment * STEP_S)
        except subprocess.TimeoutExpired:
            kill(process.pid)
            killed += 1
        process.communicate(timeout=30)
        store = Cache(machine.cache)
        assert all(artifact.is_whole() for artifact in store.all())
        for artifact in store.all():
            store.remove(artifact)
    assert killed >= 3
    made = machine.prepare(str(slow), *SLOW)
    assert [path.name for path in machine.artifacts()] == [Path(made["path"]).name]
    assert not aside(machine)


def test_the_process_that_prepares_for_a_pool_is_killed(machine: Machine, slow: Path) -> None:
    with pool(machine, slow) as server:
        kill(preparing(server))
        _, said = server.communicate(timeout=30)
        assert server.returncode == 2
        assert "ended the process that tried it (status -9)" in said.splitlines()[-1]
        assert "Traceback" not in said
    assert not (machine.root / "run").exists()
    with pool(machine, slow) as server:
        assert "embedpool is ready" in read_line(server, 30.0)
    assert len(machine.artifacts()) == 1 and not aside(machine)


def test_a_supervisor_that_is_killed_takes_the_preparing_process_with_it(machine: Machine, slow: Path) -> None:
    with pool(machine, slow) as server:
        child = preparing(server)
        kill(server.pid)
        wait_until(lambda: not alive(child), 5.0, "the preparing process to end")
    with pool(machine, slow) as server:
        assert "embedpool is ready" in read_line(server, 30.0)
        with Client(f"ipc://{machine.root}/run/embedpool.sock") as client:
            assert client.embed(["abc"]).shape == (1, 256)
    assert len(machine.artifacts()) == 1 and not aside(machine)


@contextmanager
def pool(machine: Machine, model: Path) -> Iterator[subprocess.Popen[str]]:
    """`embedpool serve` of the model, ended at the end whatever has happened to it."""
    command = ["serve", "--model", str(model), *SLOW, "--workers", "1", "--runtime-dir", str(machine.root / "run")]
    process = launch(command, machine.environ)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=15)


def preparing(server: subprocess.Popen[str]) -> int:
    """The process that prepares for this supervisor, once it is at it."""
    assert server.stderr is not None
    wait_until(lambda: bool(part(server.pid, "embedpool.models")), 30.0, "the preparing process")
    assert "preparing" in server.stderr.readline()
    (child,) = part(server.pid, "embedpool.models")
    assert child in children(server.pid)
    return child


# ── disks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[None]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(machine: Machine, slow: Path) -> None:
    with small_disk(machine.cache, 40):
        said = machine.refuse(str(slow))
        numbers = re.search(r"takes about (\d+) MB in (\S+), and (\d+) MB are free: .*--cache", said)
        assert numbers is not None, said
        assert 60 < int(numbers[1]) < 120 and numbers[2] == str(machine.cache) and int(numbers[3]) <= 42
        assert not machine.artifacts()
        assert machine.refuse(str(slow)) == said


@pytest.mark.parametrize("free_mb", [2, 30])
def test_a_disk_that_becomes_full_in_the_middle_leaves_nothing(free_mb: int, machine: Machine, slow: Path) -> None:
    with small_disk(machine.cache, 120):
        process = launch(["prepare", str(slow)], machine.environ)
        began(process)
        kill(process.pid, signal.SIGSTOP)  # it has seen that there is room, and has written nothing yet
        filled = _fill(machine.cache, free_mb << 20)
        kill(process.pid, signal.SIGCONT)
        out, said = process.communicate(timeout=30)
        assert process.returncode == 2, out
        assert said.count("\n") == 1 and said.startswith("embedpool: "), said
        assert "No space left" in said
        assert not machine.artifacts()
        filled.unlink()
        machine.prepare(str(slow))
        assert len(machine.artifacts()) == 1 and not aside(machine)


def _fill(place: Path, but: int) -> Path:
    """A file that takes all the room but so many bytes."""
    filler, free = place / "filler", os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - but)
    return filler


# ── the lock ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lock_whose_holder_is_killed_is_free(machine: Machine, slow: Path) -> None:
    machine.cache.mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    command = [sys.executable, "-c", hold, str(machine.cache / "lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as holder:  # type: ignore[call-overload]
        assert read_line(holder, 30.0) == "held\n"
        process = launch(["prepare", str(slow)], machine.environ)
        assert read_line(process, 30.0) == "waiting for another process that prepares a model\n"
        assert not machine.artifacts()
        holder.kill()
    out, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert out.startswith("preparing ")
    assert len(machine.artifacts()) == 1
