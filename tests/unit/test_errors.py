"""The code is all of an error that crosses the wire, so it must name one class; and the tree drawn at the top of errors.py
is what users read, so it is parsed here and compared with the classes, line by line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from embedpool import errors
from embedpool.errors import BY_CODE, EmbedpoolError, ProtocolError, from_wire

_LINE = re.compile(
    r"^    (?P<lead>[│├└─ ]*)(?P<name>\w+)(?: \((?P<builtin>\w+)\))?\s+(?P<code>[a-z_]+)\s+(?P<status>\d{3})(?P<note>.*)$"
)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One line of the tree."""

    name: str
    parent: str
    builtin: str
    code: str
    status: int
    note: str


def _drawn() -> list[_Drawn]:
    found: list[_Drawn] = []
    above: list[str] = []  # the names from the root down to the line before
    for line in (errors.__doc__ or "").splitlines():
        match = _LINE.match(line)
        if match is None:
            assert not set("├└") & set(line), f"a line of the tree that cannot be read: {line}"
            continue
        depth = len(match["lead"]) // 4
        above[depth:] = [match["name"]]
        parent = above[depth - 1] if depth else "Exception"
        found.append(
            _Drawn(match["name"], parent, match["builtin"] or "", match["code"], int(match["status"]), match["note"].strip())
        )
    return found


def _classes(root: type[EmbedpoolError] = EmbedpoolError) -> list[type[EmbedpoolError]]:
    ours = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(below for child in ours for below in _classes(child))]


def test_the_tree_drawn_on_top_names_every_class_and_no_other() -> None:
    names = [line.name for line in _drawn()]
    assert sorted(names) == sorted(kind.__name__ for kind in _classes())
    assert len(names) > 20, "the drawing was not found"


@pytest.mark.parametrize("line", _drawn(), ids=lambda line: line.name)
def test_the_tree_drawn_on_top_says_what_each_class_is(line: _Drawn) -> None:
    kind = getattr(errors, line.name)
    assert (kind.code, kind.http_status) == (line.code, line.status)
    assert {base.__name__ for base in kind.__bases__} == {line.parent, line.builtin} - {""}


@pytest.mark.parametrize("line", _drawn(), ids=lambda line: line.name)
def test_the_tree_drawn_on_top_says_what_is_retryable(line: _Drawn) -> None:
    assert getattr(errors, line.name).retryable == line.note.startswith("retryable")


def test_no_two_classes_have_one_code() -> None:
    codes = [kind.code for kind in _classes()]
    assert len(set(codes)) == len(codes)


def test_every_class_states_its_own_code() -> None:
    assert [kind.__name__ for kind in _classes() if "code" not in vars(kind)] == []


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.code)
def test_a_refusal_becomes_the_class_of_its_code(kind: type[EmbedpoolError]) -> None:
    error = from_wire(kind.code, "what happened", row=3, retry_after_ms=250)
    assert type(error) is kind
    assert (error.message, str(error), error.row) == ("what happened", "what happened", 3)
    # Bytes that are not the protocol do not become the protocol by waiting.
    assert error.retry_after_ms == (None if isinstance(error, ProtocolError) else 250)


def test_a_code_of_a_newer_server_becomes_the_base_class() -> None:
    error = from_wire("out_of_tea", "the kettle is empty", row=1, retry_after_ms=9)
    assert type(error) is EmbedpoolError
    assert (error.message, error.row, error.retry_after_ms) == ("the kettle is empty", 1, 9)


def test_by_code_holds_every_class_under_its_code() -> None:
    assert {kind.code: kind for kind in _classes()} == BY_CODE


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.BadRequest, ValueError),
        (errors.TextTooLong, ValueError),
        (errors.TimedOut, TimeoutError),
        (errors.NotRunning, ConnectionError),
    ],
)
def test_errors_can_be_caught_as_the_builtin_that_they_are(kind: type[EmbedpoolError], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match=r"^what happened$"):
        raise kind("what happened", row=2)


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.code)
def test_an_error_says_nothing_of_row_and_time_unless_told(kind: type[EmbedpoolError]) -> None:
    error = kind("what happened")
    assert (error.row, error.retry_after_ms) == (None, None)


def test_what_waiting_may_cure_is_retryable_and_a_wrong_request_is_not() -> None:
    retryable = {kind.code for kind in _classes() if kind.retryable}
    assert retryable == {"unavailable", "overloaded", "draining", "not_running", "expired", "model_changed"}
    assert all(kind.http_status in (409, 429, 503, 504) for kind in _classes() if kind.retryable)
