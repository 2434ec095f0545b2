"""What the documents show is what happens: the README's code, its numbers, and the protocol's fields."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from embedpool import protocol as wire
from embedpool.errors import BY_CODE
from tests.support import serving

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


def test_the_code_of_the_readme_runs_and_prints_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```(?:\s*```\n(.*?)```)?", README, re.DOTALL)
    assert len(blocks) >= 2
    assert blocks[0][1], "the first vector is shown with its output"
    with serving(model="minilm") as server:
        monkeypatch.setenv("EMBEDPOOL_ENDPOINT", server.endpoint)
        for code, shown in blocks:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "README.md", "exec"), {})
            if shown:
                assert printed.getvalue() == shown


def test_the_example_finds_the_right_line_with_a_running_pool_and_with_its_own(tmp_path: Path) -> None:
    lines = ["The cat sleeps in the window.", "Interest rates were left unchanged.", "The train leaves at seven."]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    command = [
        sys.executable,
        str(ROOT / "examples" / "search.py"),
        str(tmp_path / "lines.txt"),
        "what do central banks decide?",
    ]
    with serving(model="minilm") as server:
        for environ in ({"EMBEDPOOL_ENDPOINT": server.endpoint}, {"EMBEDPOOL_RUNTIME_DIR": str(tmp_path)}):
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, **environ}, timeout=60
            )
            assert done.stdout.splitlines()[1].endswith(lines[1]), done.stdout


def test_the_first_vector_stands_within_twenty_lines_of_the_first_section() -> None:
    start = README.index("## The first vector")
    assert README[start:].index("(2, 384)") < README[start:].index("\n" * 1 + "## A pool")
    assert README[start:].split("(2, 384)")[0].count("\n") <= 20


def test_the_numbers_of_the_readme_are_those_of_the_result_files() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "render.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_test_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:tests|bench|src|docs)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("cls", [wire.Hello, wire.Embed, wire.Cancel, wire.Ping, wire.AskStatus, wire.Bye])
def test_every_field_that_a_client_sends_is_documented(cls: type) -> None:
    _is_documented(cls)


@pytest.mark.parametrize("cls", [wire.Who, wire.Welcome, wire.Vectors, wire.Refused, wire.Pong, wire.Status])
def test_every_field_that_a_client_receives_is_documented(cls: type) -> None:
    _is_documented(cls)


def _is_documented(cls: type) -> None:
    kind = cls.__struct_config__.tag  # type: ignore[attr-defined]
    row = next(line for line in PROTOCOL.splitlines() if line.startswith("| ") and f"`{kind}`" in line.split("|")[1])
    if kind in ("pong", "status"):
        return  # that row points to the messages that they answer
    for name in cls.__struct_fields__:  # type: ignore[attr-defined]
        assert f"`{name}`" in row, f"{kind}.{name}"
    for nested in {"welcome": (wire.Limits, wire.ModelCard)}.get(kind, ()):
        for name in nested.__struct_fields__:
            assert f"`{name}`" in row, f"{nested.__name__}.{name}"


def test_every_code_that_a_router_sends_is_documented() -> None:
    codes = PROTOCOL.partition("\nCodes: ")[2].partition("\n\n")[0]
    local = {
        "internal",
        "unavailable",
        "not_running",
        "no_space",
        "bad_model",
        "bad_config",
        "already_running",
        "model_changed",
        "wrong_model",
    }
    assert set(re.findall(r"`([a-z]+_[a-z]+|[a-z]+)`", codes)) - {"overloaded"} == set(BY_CODE) - local - {"overloaded"}
    for code in re.findall(r"`(\w+)`", codes.partition("Only")[2].partition("are retryable")[0]):
        assert BY_CODE[code].retryable
