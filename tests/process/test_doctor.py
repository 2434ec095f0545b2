"""`embedpool doctor` and `embedpool cores` on this machine, with a pool that runs, was killed, or hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from embedpool import Client
from embedpool.supervise.place import enter
from tests.faults.test_table import ready_workers
from tests.support import COMMAND, alive, children, kill, router_of, serving, wait_until


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=90, check=False)


def _doctor(place: Path, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit status, and the checks by name."""
    done = _run("doctor", "--json", "--runtime-dir", str(place), "--workers", "2", *arguments)
    assert done.stdout, done.stderr
    return done.returncode, {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_pool_that_serves_is_found_well_and_lacks_nothing(tmp_path: Path) -> None:
    with serving() as server, Client(server.endpoint) as client:
        client.embed(["warm"])
        wait_until(lambda: ready_workers(client) == 2, 5.0)
        status, found = _doctor(server.runtime_dir, "--cache", str(tmp_path))
        bad = [check for check in found.values() if check["verdict"] == "bad"]
        assert (status, bad) == (0, []), "this machine itself lacks something that the other tests need"
        assert found["pool"]["verdict"] == "ok" and "2 of 2 workers ready" in found["pool"]["found"]
        assert found["lock and socket"]["found"] == "held by the pool"
        assert found["ONNX Runtime"]["found"].endswith("telemetry is switched off")
        status, found = _doctor(server.runtime_dir, "--cache", str(tmp_path), "--workers", "1")
        assert (status, found["pool"]["verdict"]) == (0, "warn"), "it has more workers than these settings plan"
        shown = _run("doctor", "--runtime-dir", str(server.runtime_dir)).stdout
        assert "as they should be" in shown and "\x1b[" not in shown


def test_what_a_killed_pool_left_is_found_and_no_fault() -> None:
    with serving() as server:
        parts = children(server.pid)
        kill(server.pid)
        wait_until(lambda: not any(map(alive, parts)), 5.0)
        status, found = _doctor(server.runtime_dir)
        assert (status, found["pool"]["verdict"], found["lock and socket"]["verdict"]) == (0, "ok", "warn")
        enter(server.runtime_dir, server.endpoint).leave()


def test_a_pool_that_holds_its_lock_and_does_not_answer_is_a_fault() -> None:
    with serving() as server:
        stopped = (server.pid, router_of(server.pid))
        for pid in stopped:
            kill(pid, signal.SIGSTOP)
        status, found = _doctor(server.runtime_dir)
        for pid in stopped:
            kill(pid, signal.SIGCONT)
        assert (status, found["lock and socket"]["verdict"]) == (1, "bad")
        assert f"process {server.pid} holds the lock" in found["lock and socket"]["found"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away, which only root can")
def test_a_runtime_directory_of_another_user_is_a_fault_as_it_is_for_serve(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir(mode=0o750)
    os.chown(place, 12345, -1)
    status, found = _doctor(place)
    assert (status, found["runtime directory"]["verdict"]) == (1, "bad")
    served = _run("serve", "--model", "echo", "--runtime-dir", str(place))
    assert served.returncode == 2 and "belongs to another user" in served.stderr


def test_cores_shows_the_plan_that_a_pool_then_has() -> None:
    told = json.loads(_run("cores", "--json", "--workers", "2").stdout)
    with serving() as server, Client(server.endpoint) as client:
        wait_until(lambda: ready_workers(client) == 2, 5.0)
        status = json.loads(client.status())
    assert [worker["cores"] for worker in status["workers"]] == told["workers"]
    assert status["pool"]["plan"] == told["reason"]
    shown = _run("cores", "--workers", "2").stdout
    assert told["reason"].split(":")[0] in shown.replace("\n          ", " ")


def test_a_pool_without_pins_says_so_everywhere() -> None:
    with serving("--pin", "false") as server, Client(server.endpoint) as client:
        assert server.ready_line.strip().endswith("2 workers not pinned")
        wait_until(lambda: ready_workers(client) == 2, 5.0)
        status = json.loads(client.status())
        assert [worker["cores"] for worker in status["workers"]] == [[], []]
        assert status["pool"]["plan"].endswith("; not pinned")
