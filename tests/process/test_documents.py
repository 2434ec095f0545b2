"""What the documents show is what happens: the README's code, its numbers, and the protocol's fields."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from msgspec import NODEFAULT, Struct, inspect

from embedpool import protocol as wire
from embedpool.errors import BY_CODE
from embedpool.shm.layout import DTYPES
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


MESSAGES: tuple[type[Struct], ...] = get_args(wire.FromClient) + get_args(wire.ToClient)


@pytest.mark.parametrize("cls", [*MESSAGES, wire.Limits, wire.ModelCard], ids=lambda cls: cls.__name__)
def test_every_field_of_a_message_is_documented_with_its_type_bounds_and_default(cls: type[Struct]) -> None:
    section = {wire.Limits: "limits", wire.ModelCard: "models"}.get(cls) or str(cls.__struct_config__.tag)
    text = re.split(r"^#+ ", PROTOCOL.partition(f"## `{section}`\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    fields = [line.strip("| ").split(" | ")[:3] for line in text.splitlines() if line.startswith("| `")]
    meant = [[f"`{field.name}`", _type(field.type), _default(field)] for field in inspect.type_info(cls).fields]  # type: ignore[attr-defined]
    assert [[word.strip(" |") for word in row] for row in fields] == meant


def _type(kind: inspect.Type) -> str:
    """A field's type and bounds, in the words of the page."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            name = "integer" if isinstance(kind, inspect.IntType) else "number"
            assert kind.ge == 0
            return name if kind.le in (None, wire.MAX_I64) else f"{name} ≤ {kind.le:,.0f}"
        case inspect.StrType():
            return "string" if kind.max_length is None else f"string ≤ {kind.max_length:,}"
        case inspect.VarTupleType():
            most = "" if kind.max_length is None else f" ≤ {kind.max_length:,}"
            return f"array{most} of {_type(kind.item_type)}"
        case inspect.LiteralType():
            shown = DTYPES if set(kind.values) == set(DTYPES) else sorted(map(str, kind.values))
            return ", ".join(f"`{value}`" for value in shown)
        case inspect.UnionType():
            order = {"NoneType": 2, "LiteralType": 1}
            return " or ".join(map(_type, sorted(kind.types, key=lambda each: order.get(type(each).__name__, 0))))
    return {"BoolType": "boolean", "NoneType": "nil", "StructType": "map"}[type(kind).__name__]


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value: object = field.default if field.default is not NODEFAULT else field.default_factory()
    match value:
        case None:
            return "nil"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:.0f}"
        case str() if value:
            return f"`{value}`"
        case str():
            return '""'
        case tuple():
            return f"[{', '.join(f'`{each}`' for each in value)}]"
    raise AssertionError(value)


def test_every_code_that_a_router_sends_is_documented_and_whether_to_try_again() -> None:
    table = PROTOCOL.partition("\n## Errors\n")[2].partition("\n## ")[0]
    found = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", table, re.MULTILINE))
    local = {
        "internal",
        "unavailable",
        "not_running",
        "bad_model",
        "bad_config",
        "already_running",
        "model_changed",
        "wrong_model",
    }
    assert found == {code: "yes" if kind.retryable else "no" for code, kind in BY_CODE.items() if code not in local}
