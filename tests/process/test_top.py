"""`embedpool top` in a terminal of its own: shows the pool, hears q, leaves the terminal as it was, outlives its pool."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedpool import Client, EmbedpoolError
from tests.support import COMMAND, kill, router_of, serving, wait_until

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ENTERS, LEAVES, SHOWS_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


class Terminal:
    """A pseudo-terminal in which the command runs; `text` is all that it has written."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 24, **environ: str) -> None:
        self.ours, self.theirs = pty.openpty()
        self.resize(columns, rows)
        self.found = termios.tcgetattr(self.theirs)
        self.text = ""
        environ = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8", **environ}
        for name in ("NO_COLOR", "COLUMNS", "LINES") if "NO_COLOR" not in environ else ():
            environ.pop(name, None)
        self.process = subprocess.Popen(
            [*COMMAND, "top", *arguments],
            stdin=self.theirs,
            stdout=self.theirs,
            stderr=self.theirs,
            env=environ,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C and window sizes are signals only then
        )

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, within_s: float = 0.05) -> None:
        while select.select([self.ours], [], [], within_s)[0]:
            self.text += os.read(self.ours, 1 << 16).decode(errors="replace")
            within_s = 0.0

    def screen(self) -> str:
        """What was written last, from the home position on, without colours."""
        return ESCAPES.sub("", self.text.rpartition("\x1b[H")[2])

    def shows(self, *words: str, within_s: float = 15.0) -> str:
        def true() -> bool:
            self.read()
            return all(word in self.screen() for word in words)

        try:
            wait_until(true, within_s)
        except AssertionError:
            raise AssertionError(f"not shown within {within_s} s: {words}\n{self.screen()}") from None
        return self.screen()

    def press(self, key: bytes) -> None:
        os.write(self.ours, key)

    def ended(self, within_s: float = 5.0) -> int:
        """The exit status; what the command wrote until its end is in `text`."""

        def over() -> bool:
            self.read()
            return self.process.poll() is not None

        wait_until(over, within_s, "the command's end")
        self.read()
        return self.process.returncode

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.theirs) == self.found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@contextlib.contextmanager
def terminal(*arguments: str, **options: Any) -> Iterator[Terminal]:
    made = Terminal(*arguments, **options)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def load(endpoint: str) -> Iterator[None]:
    """A few requests in each tenth of a second until the block is left."""
    over = threading.Event()

    def ask() -> None:
        with Client(endpoint, segment_bytes=0) as client:
            turn = 0
            while not over.wait(0.02):
                turn += 1
                with contextlib.suppress(EmbedpoolError):
                    client.embed([f"text {turn} {i}" for i in range(20)], timeout_s=2.0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)


def figure(screen: str, name: str) -> float:
    found = re.search(rf"{name}\s+([\d,.]+)", screen)
    return float(found[1].replace(",", "")) if found else 0.0


def fast(endpoint: str) -> tuple[str, ...]:
    return ("--endpoint", endpoint, "--interval", "0.2")


def test_a_pool_under_load_is_seen_and_q_quits_leaving_the_terminal_as_it_was() -> None:
    with serving() as server, load(server.endpoint), terminal(*fast(server.endpoint)) as shown:
        shown.shows("serving", "echo:384", "texts/s", "2 workers", "q quits")
        wait_until(lambda: shown.read() or figure(shown.screen(), "texts/s") > 50, 10.0, "a rate")
        lines = shown.screen().splitlines()
        assert len(lines) <= 24 and all(len(line) <= 80 for line in lines)
        assert not shown.is_as_before(), "keys are read one by one, unseen"
        assert ENTERS in shown.text
        shown.press(b"\x1a")  # Ctrl-Z, and then any other key
        shown.press(b"x")
        shown.shows("serving")
        began = time.monotonic()
        shown.press(b"q")
        assert shown.ended() == 0
        assert time.monotonic() - began < 2
        assert shown.is_as_before()
        assert (
            LEAVES in shown.text and SHOWS_CURSOR in shown.text.rpartition(LEAVES)[0][-40:] + shown.text.rpartition(LEAVES)[2]
        )
        assert "Traceback" not in shown.text


@pytest.mark.parametrize(
    "end",
    [
        lambda shown: shown.press(b"\x03"),
        lambda shown: kill(shown.process.pid, signal.SIGINT),
        lambda shown: kill(shown.process.pid, signal.SIGTERM),
        lambda shown: kill(shown.process.pid, signal.SIGHUP),
    ],
    ids=["Ctrl-C", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_every_way_out_restores_the_terminal(end: Callable[[Terminal], None]) -> None:
    with terminal(*fast("ipc:///dev/shm/embedpool-test-nobody/embedpool.sock")) as shown:
        shown.shows("no pool is running")
        end(shown)
        assert shown.ended() == 0
        assert shown.is_as_before() and LEAVES in shown.text and "Traceback" not in shown.text


def test_a_pool_that_is_killed_and_started_again_is_found_again(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with terminal(*fast(f"ipc://{place}/embedpool.sock")) as shown:
        shown.shows("no pool is running")
        with serving(runtime_dir=place) as server, load(server.endpoint):
            shown.shows("serving", "2 workers")
        shown.shows("away", "echo:384")
        with serving(runtime_dir=place, workers="1"):
            shown.shows("serving", "1 worker")
        shown.press(b"q")
        assert shown.ended() == 0 and shown.is_as_before() and "Traceback" not in shown.text


def test_a_router_that_is_replaced_does_not_make_rates_fall_below_nothing() -> None:
    with serving() as server, load(server.endpoint), terminal(*fast(server.endpoint)) as shown:
        shown.shows("serving")
        wait_until(lambda: shown.read() or figure(shown.screen(), "texts/s") > 50, 10.0, "a rate")
        kill(router_of(server.pid))
        time.sleep(0.3)  # while there is none
        shown.shows("serving", within_s=20.0)
        wait_until(lambda: shown.read() or figure(shown.screen(), "texts/s") > 50, 10.0, "a rate of the next router")
        assert not re.search(r"/s\s+-\d", ESCAPES.sub("", shown.text))
        shown.press(b"q")
        assert shown.ended() == 0


def test_a_window_that_is_made_larger_is_filled_at_once() -> None:
    with serving() as server, terminal("--endpoint", server.endpoint, "--interval", "30") as shown:
        shown.shows("serving")
        shown.resize(120, 40)
        shown.shows("restarts", within_s=5.0)
        shown.press(b"q")
        assert shown.ended() == 0


def test_a_dumb_terminal_and_a_pipe_get_lines() -> None:
    with serving() as server, load(server.endpoint):
        with terminal(*fast(server.endpoint), TERM="dumb") as shown:
            wait_until(lambda: shown.read() or shown.text.count("serving") > 3, 10.0, "lines")
            assert "\x1b" not in shown.text
            kill(shown.process.pid, signal.SIGTERM)
            assert shown.ended() == 0
        with subprocess.Popen([*COMMAND, "top", *fast(server.endpoint)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(4)]
            process.send_signal(signal.SIGINT)
            assert process.wait(5) == 0
        assert all(re.match(r"\d\d:\d\d:\d\d serving  texts/s ", line) for line in lines)
        assert figure(lines[-1], "texts/s") > 50


def test_no_colour_is_heard() -> None:
    with serving() as server, terminal(*fast(server.endpoint), NO_COLOR="1") as shown:
        shown.shows("serving")
        assert not re.search(r"\x1b\[[\d;]*3[1-7]m", shown.text)
        shown.press(b"q")
        assert shown.ended() == 0


def once(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "top", "--once", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **environ})


def test_once_prints_one_screen_or_one_document() -> None:
    with serving() as server, load(server.endpoint):
        page = once(*fast(server.endpoint), COLUMNS="80")
        assert page.returncode == 0 and "texts/s" in page.stdout and "2 workers" in page.stdout and "\x1b" not in page.stdout
        assert all(len(line) <= 80 for line in page.stdout.splitlines())
        plain = once(*fast(server.endpoint), COLUMNS="80", PYTHONIOENCODING="ascii")
        assert plain.returncode == 0 and plain.stdout.isascii() and "texts/s" in plain.stdout
        found = json.loads(once(*fast(server.endpoint), "--json").stdout)
        assert found["state"] == "serving" and found["rates"]["rows"] > 50
        assert {worker["memory"] > 1_000_000 for worker in found["workers"]} == {True}


def test_a_mistake_is_one_sentence() -> None:
    nobody = once("--endpoint", "ipc:///dev/shm/embedpool-test-nobody/embedpool.sock")
    assert (
        nobody.returncode == 1 and nobody.stderr.startswith("embedpool: no pool is running") and nobody.stderr.count("\n") == 1
    )
    for arguments in (("--interval", "0.1"), ("--interval", "61"), ("--interval", "nan"), ("--endpoint", "nonsense")):
        done = once(*arguments)
        assert done.returncode == 2 and done.stderr.startswith("embedpool: ") and done.stderr.count("\n") == 1, done.stderr
