"""Two clients never meet, nothing leaks, and a client cannot harm a segment."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import random
import re
import subprocess
import threading
from pathlib import Path

import pytest

from embedpool import Client
from embedpool.memory import pss_bytes
from embedpool.shm import segment as shm
from embedpool.shm.segment import ReadMap
from tests.support import router_of, same, serving, wait_until, workers_of


def test_ten_thousand_mixed_requests_of_two_clients_never_meet() -> None:
    wrong: list[str] = []
    with serving() as server:

        def work(name: str, seed: int) -> None:
            chosen = random.Random(seed)
            with Client(server.endpoint, segment_bytes=1 << 20) as client:
                held = []
                for i in range(5000):
                    texts = [
                        f"{name} {i} {row} " + "x" * chosen.randrange(60) for row in range(chosen.choice((1, 1, 1, 2, 5, 40)))
                    ]
                    found = client.embed(texts)
                    if not same(found, texts):
                        wrong.append(f"{name} {i}")
                    if i % 7 == 0:
                        held.append((found, texts))
                    if len(held) > 20:
                        old, its = held.pop(chosen.randrange(len(held)))
                        if not same(old, its):
                            wrong.append(f"{name} {i}: an array changed while it was held")

        threads = [threading.Thread(target=work, args=(name, n)) for n, name in enumerate(("alice", "bob"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive()
    assert not wrong


def test_ten_thousand_requests_and_a_hundred_reconnects_leak_nothing() -> None:
    with serving() as server:
        pids = [server.pid, router_of(server.pid), *workers_of(server.pid)]

        def use(requests: int, reconnects: int) -> None:
            for _ in range(reconnects):
                with Client(server.endpoint) as client:
                    for i in range(requests // reconnects):
                        client.embed([f"text {i}"] * (i % 3 + 1))

        def descriptors() -> list[int]:
            return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

        use(1000, 20)
        wait_until(lambda: not list((server.runtime_dir / "segments").iterdir()), 5.0, "segments to go")
        before, memory = descriptors(), [pss_bytes(pid) for pid in pids]
        use(10_000, 100)
        wait_until(lambda: not list((server.runtime_dir / "segments").iterdir()), 5.0, "segments to go")
        wait_until(lambda: descriptors() <= before, 5.0, f"descriptors {before} -> {descriptors()}")
        grown = [after - at_first for after, at_first in zip([pss_bytes(pid) for pid in pids], memory, strict=True)]
        assert max(grown) < 4 << 20, grown
        with Client(server.endpoint, segment_bytes=0) as client:
            assert json.loads(client.status())["sessions"]["segment_bytes"] == 0


def test_a_client_can_neither_write_nor_resize_its_segment_and_the_pool_goes_on() -> None:
    with serving() as server, Client(server.endpoint) as client:
        kept = client.embed(["kept"])
        (path,) = (server.runtime_dir / "segments").iterdir()
        assert path.stat().st_mode & 0o777 == 0o640
        fds = [int(fd) for fd in os.listdir("/proc/self/fd") if _opens(fd, path)]
        assert fds
        for fd in fds:
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            with pytest.raises(OSError, match=r"Invalid argument|Permission|Bad file"):
                os.ftruncate(fd, 0)
            with pytest.raises(OSError, match="Bad file"):
                os.write(fd, b"x")
            with pytest.raises(PermissionError):
                mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE)
        with pytest.raises(ValueError, match="WRITEABLE"):
            kept.flags.writeable = True
        assert same(kept, ["kept"])
        assert same(client.embed(["after"]), ["after"])


def _opens(fd: str, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == str(path)
    except OSError:
        return False


def test_a_segment_that_does_not_fit_says_how_many_bytes_are_missing() -> None:
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
    with pytest.raises(shm.SegmentError, match=r"\d+ bytes are missing") as caught:
        shm.create(Path("/dev/shm"), free + (1 << 30))
    assert "--shm-size" in caught.value.message
    assert not list(Path("/dev/shm").glob("*.segment"))


def test_a_tmpfs_that_is_too_small_means_inline_vectors_and_a_warning_with_the_missing_bytes(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", tmp_path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with serving(runtime_dir=tmp_path / "run") as server, Client(server.endpoint) as client:
            assert same(client.embed(["inline"]), ["inline"])
            assert re.search(r"\d+ bytes are missing", client.warning)
            with Client(server.endpoint, segment_bytes=1 << 20) as small:
                assert same(small.embed(["in shared memory"]), ["in shared memory"])
                assert not small.warning
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)  # arrays of this test may still look into it


def test_liveness_is_the_lock_of_the_client_not_of_its_arrays(tmp_path: Path) -> None:
    made = shm.create(tmp_path, 1 << 16)
    try:
        assert made.is_abandoned()
        mapped = ReadMap(str(made.path), made.size)
        array = mapped.room(0, 16)
        assert not made.is_abandoned()
        mapped.close()
        assert made.is_abandoned()
        assert array.sum() == 0
    finally:
        made.remove()
