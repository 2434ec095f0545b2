"""What a service manager is told by a pool that runs, over a socket that stands in for systemd's; and how its log lines look
to a journal, a program and a person.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedpool import Client
from tests.support import children, forkserver_of, kill, launch, part, read_line, router_of, same, wait_until, workers_of


class Manager:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[tuple[float, str]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._sock.setblocking(False)

    def lines(self) -> list[str]:
        """All assignments so far, in order."""
        while True:
            try:
                message = self._sock.recv(4096).decode()
            except BlockingIOError:
                return [line for _, line in self.heard]
            self.heard += [(time.monotonic(), line) for line in message.split("\n")]

    def wait_for(self, line: str, within_s: float = 30.0) -> None:
        wait_until(lambda: any(re.fullmatch(line, heard) for heard in self.lines()), within_s, f"{line} in {self.heard}")

    def forget(self) -> None:
        self.lines()
        self.heard.clear()

    def silence_s(self, line: str) -> float:
        """Since it was said last."""
        self.lines()
        return time.monotonic() - max(at for at, heard in self.heard if heard == line)

    def close(self) -> None:
        self._sock.close()


@contextmanager
def managed(
    *arguments: str, watchdog_s: float = 0.0, abstract: bool = False
) -> Iterator[tuple[Manager, subprocess.Popen[str]]]:
    """A pool of two echo workers, and its manager."""
    with tempfile.TemporaryDirectory(prefix="embedpool-test-", dir="/dev/shm") as made:
        manager = Manager(f"@{Path(made).name}" if abstract else f"{made}/notify")
        environ = {"NOTIFY_SOCKET": manager.address}
        if watchdog_s:
            environ["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        command = ["serve", "--model", "echo", "--workers", "2", "--runtime-dir", f"{made}/run", *arguments]
        process = launch(command, environ)
        try:
            yield manager, process
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=20)
            manager.close()


def _endpoint(manager: Manager) -> str:
    (path,) = {found[1] for line in manager.lines() if (found := re.search(r"serving echo:384 at ipc://(\S+):", line))}
    return f"ipc://{path}"


@pytest.mark.parametrize("abstract", [False, True])
def test_ready_is_said_when_the_first_request_is_answered_and_not_before(abstract: bool) -> None:
    with managed(abstract=abstract) as (manager, process):
        wait_until(lambda: bool(part(process.pid, "embedpool.worker")) or bool(part(process.pid, "embedpool-fork")), 20.0)
        loading = (part(process.pid, "embedpool.worker") + part(process.pid, "embedpool-fork"))[0]
        kill(loading, signal.SIGSTOP)  # no worker can be started
        manager.wait_for("STATUS=starting echo:384: 0 of 2 workers ready")
        time.sleep(1.0)
        assert "READY=1" not in manager.lines()
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.lines())
        kill(loading, signal.SIGCONT)
        manager.wait_for("READY=1")
        with Client(_endpoint(manager)) as client:
            assert same(client.embed(["at once"], timeout_s=2.0), ["at once"])
        manager.wait_for(r"STATUS=serving echo:384 at .*: 2 of 2 workers ready")


def test_while_it_starts_it_says_what_it_does_and_asks_for_time() -> None:
    with managed() as (manager, _):
        manager.wait_for("READY=1")
        said = manager.lines()
        assert said[:2] == [
            "EXTEND_TIMEOUT_USEC=30000000",
            "STATUS=preparing echo: a download or a conversion may take minutes",
        ]
        assert said.index("STATUS=starting echo:384: 0 of 2 workers ready") < said.index("READY=1")


def test_a_worker_that_dies_is_seen_in_the_status_and_its_successor_too() -> None:
    with managed() as (manager, process):
        manager.wait_for(r"STATUS=.*: 2 of 2 workers ready")
        manager.forget()
        kill(workers_of(process.pid)[0])
        manager.wait_for(r"STATUS=.*: 1 of 2 workers ready; 1 restart; worker \d ended \(SIGKILL\)")
        manager.wait_for(r"STATUS=.*: 2 of 2 workers ready; 1 restart")
        assert "READY=1" not in manager.lines()


def test_a_reload_begins_and_ends_for_the_manager() -> None:
    with managed() as (manager, process):
        manager.wait_for(r"STATUS=.*: 2 of 2 workers ready")
        manager.forget()
        process.send_signal(signal.SIGHUP)
        manager.wait_for("READY=1")
        said = [line for line in manager.lines() if not line.startswith(("STATUS", "EXTEND"))]
        assert said[0] == "RELOADING=1"
        assert said[1].startswith("MONOTONIC_USEC=")
        assert abs(int(said[1].partition("=")[2]) / 1e6 - time.monotonic()) < 30
        assert said[2:] == ["READY=1"]


def test_stopping_is_said_first_and_with_the_time_that_it_may_take() -> None:
    with managed("--drain-s", "5", watchdog_s=1.0) as (manager, process):
        manager.wait_for(r"STATUS=.*: 2 of 2 workers ready")
        manager.forget()
        process.terminate()
        assert process.wait(10) == 0
        said = manager.lines()
        at = said.index("STOPPING=1")
        assert said[at:] == [
            "STOPPING=1",
            "EXTEND_TIMEOUT_USEC=35000000",
            "STATUS=stopping: finishing what was accepted, at most 5 s",
        ]


@pytest.mark.parametrize("who", ["router", "workers"])
def test_the_watchdog_is_fed_only_while_router_and_workers_make_progress(who: str) -> None:
    with managed("--hang-s", "60", watchdog_s=1.0) as (manager, process):
        manager.wait_for(r"STATUS=.*: 2 of 2 workers ready")
        wait_until(lambda: manager.lines().count("WATCHDOG=1") >= 3, 10.0, "to be fed every half of the time")
        pids = [router_of(process.pid)] if who == "router" else workers_of(process.pid)
        for pid in pids:
            kill(pid, signal.SIGSTOP)
        wait_until(lambda: manager.silence_s("WATCHDOG=1") > 2.5, 15.0, "not to be fed any more")
        for pid in pids:
            kill(pid, signal.SIGCONT)
        wait_until(lambda: manager.silence_s("WATCHDOG=1") < 1.0, 10.0, "to be fed again")


def test_one_stopped_worker_of_two_is_no_reason_to_start_all_anew() -> None:
    with managed("--hang-s", "60", watchdog_s=1.0) as (manager, process):
        manager.wait_for(r"STATUS=.*: 2 of 2 workers ready")
        stopped = workers_of(process.pid)[0]
        kill(stopped, signal.SIGSTOP)
        manager.forget()
        wait_until(lambda: manager.lines().count("WATCHDOG=1") >= 4, 10.0, "to be fed all the same")
        kill(stopped, signal.SIGCONT)


def test_a_supervisor_that_is_stuck_feeds_nobody() -> None:
    with managed(watchdog_s=1.0) as (manager, process):
        manager.wait_for("WATCHDOG=1")
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: manager.silence_s("WATCHDOG=1") > 1.5, 5.0)
        process.send_signal(signal.SIGCONT)


def test_children_know_nothing_of_the_manager() -> None:
    with managed(watchdog_s=1.0) as (manager, process):
        manager.wait_for("READY=1")
        assert forkserver_of(process.pid) in children(process.pid)
        for pid in children(process.pid):
            assert not re.search(rb"NOTIFY_SOCKET|WATCHDOG", Path(f"/proc/{pid}/environ").read_bytes())


def test_a_private_pool_of_a_service_is_not_the_service() -> None:
    with tempfile.TemporaryDirectory(prefix="embedpool-test-", dir="/dev/shm") as made:
        manager = Manager(f"{made}/notify")
        code = "from embedpool import Pool\nwith Pool('echo', workers=1) as pool: print(pool.embed(['text']).shape)"
        environ = {**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        try:
            assert (done.stdout, manager.lines()) == ("(1, 384)\n", []), done.stderr
        finally:
            manager.close()


def test_a_manager_that_is_gone_is_no_reason_to_fail() -> None:
    with managed(watchdog_s=1.0) as (manager, process):
        manager.wait_for("READY=1")
        os.unlink(manager.address)
        kill(workers_of(process.pid)[0])
        wait_until(lambda: len(workers_of(process.pid)) == 2, 10.0)
        assert process.poll() is None


# ── log lines ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _logged(log_format: str, stderr: Path, journal: bool = False) -> tuple[str, list[str]]:
    """stdout, and the lines on stderr, of a pool of which a worker was killed."""
    with tempfile.TemporaryDirectory(prefix="embedpool-test-", dir="/dev/shm") as made, stderr.open("w") as file:
        status = os.fstat(file.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}" if journal else "1:1"}
        command = [sys.executable, "-P", "-m", "embedpool", "serve", "--model", "echo", "--workers", "1"]
        command += ["--runtime-dir", f"{made}/run", "--log-format", log_format]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, env=environ, text=True)
        try:
            wait_until(lambda: "worker 0 is ready" in stderr.read_text(), 30.0)
            kill(workers_of(process.pid)[0])
            wait_until(lambda: stderr.read_text().count("worker 0 is ready") == 2, 10.0)
        finally:
            process.terminate()
            said = process.communicate(timeout=20)[0]
        return said, stderr.read_text().splitlines()


def test_the_journal_gets_priorities_and_no_time_and_each_event_once(tmp_path: Path) -> None:
    stdout, lines = _logged("auto", tmp_path / "log", journal=True)
    assert stdout == ""  # it goes to the journal as well
    kinds = [re.sub(r"\d+(\.\d)? s|process \d+|ipc://\S+|cores? \d+", "…", line) for line in lines]
    assert kinds == [
        "<6>embedpool: router is ready (…)",
        "<6>embedpool: worker 0 is ready (…)",
        "<6>embedpool: ready after …: echo:384 (384 dimensions) at … 1 worker on …",
        "<4>embedpool: worker 0 ended (SIGKILL): starting it again in …",
        "<6>embedpool: worker 0 is ready (…)",
        "<6>embedpool: stopping: finishing what was accepted, at most …",
        "<6>embedpool: stopped",
    ]


def test_a_stderr_that_is_not_the_journal_is_written_for_people(tmp_path: Path) -> None:
    stdout, lines = _logged("auto", tmp_path / "log")
    assert stdout.startswith("embedpool is ready after ")
    assert "embedpool: worker 0 ended (SIGKILL): starting it again in 0.0 s" in lines
    assert not [line for line in lines if "ready after" in line]


def test_plain_lines_have_time_and_level(tmp_path: Path) -> None:
    _, lines = _logged("plain", tmp_path / "log")
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (info   |warning) embedpool: \w", line) for line in lines)


def test_json_lines_are_events_with_fields(tmp_path: Path) -> None:
    stdout, lines = _logged("json", tmp_path / "log")
    events = [json.loads(line) for line in lines]
    assert stdout == ""
    assert [event["event"] for event in events] == ["ready", "ready", "pool ready", "ended", "ready", "stopping", "stopped"]
    ended = events[3]
    assert (ended["level"], ended["process"], ended["child"], ended["reason"]) == (
        "warning",
        "embedpool",
        "worker 0",
        "SIGKILL",
    )
    assert ended["child_pid"] == events[1]["child_pid"]
    assert events[4]["restarts"] == 1


def test_an_error_at_the_start_has_the_priority_of_one(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        status = os.fstat(file.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command = [sys.executable, "-P", "-m", "embedpool", "serve", "--workers", "many"]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=file, env=environ, timeout=30, check=False)
    assert done.returncode == 2
    assert (tmp_path / "log").read_text().startswith("<3>embedpool: workers must be a whole number")


def test_ready_line_is_read_by_scripts_on_stdout() -> None:
    with managed() as (_, process):
        assert read_line(process, 30.0).startswith("embedpool is ready after ")
