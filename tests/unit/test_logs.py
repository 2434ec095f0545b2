"""A log line is read by a person, a program and the journal, each of which has a form of its own; the forms are fixed here."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from embedpool.config import journal_stream
from embedpool.logs import Format, Lines, instant, priority, shape


def _record(message: str = "worker %d ended", level: int = logging.WARNING, **fields: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": message, "levelno": level, "levelname": logging.getLevelName(level), **fields})
    record.args, record.created, record.process = (3,) if "%d" in message else (), 1_700_000_000.25, 77
    return record


def _line(record: logging.LogRecord, form: Format, *, priorities: bool = False) -> str:
    return Lines("embedpool", form, priorities=priorities).format(record)


def test_each_form_of_one_record() -> None:
    record = _record(event="ended", reason="SIGKILL")
    assert _line(record, "terminal") == "embedpool: worker 3 ended"
    assert _line(record, "plain") == "2023-11-14T22:13:20.250Z warning embedpool: worker 3 ended"
    assert _line(record, "journal", priorities=True) == "<4>embedpool: worker 3 ended"
    assert json.loads(_line(record, "json")) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "process": "embedpool",
        "pid": 77,
        "message": "worker 3 ended",
        "event": "ended",
        "reason": "SIGKILL",
    }


def test_json_in_the_journal_is_an_object_behind_its_priority() -> None:
    line = _line(_record("text with\na break, and ü"), "json", priorities=True)
    assert line.startswith("<4>{")
    assert json.loads(line[3:])["message"] == "text with\na break, and ü"


def test_a_traceback_keeps_its_priority_on_every_line() -> None:
    try:
        raise ValueError("inside")
    except ValueError:
        record = _record("it failed", logging.ERROR, exc_info=sys.exc_info())
    lines = _line(record, "journal", priorities=True).splitlines()
    assert lines[0] == "<3>embedpool: it failed"
    assert lines[-1] == "<3>ValueError: inside"
    assert all(line.startswith("<3>") for line in lines)
    assert "ValueError: inside" in json.loads(_line(record, "json"))["traceback"]


def test_a_field_that_json_does_not_know_is_written_as_text() -> None:
    assert json.loads(_line(_record(where={1, 2} - {2}), "json"))["where"] == "{1}"


@pytest.mark.parametrize(
    ("level", "number"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (25, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2), (5, 7)],
)
def test_levels_are_syslogs_priorities(level: int, number: int) -> None:
    assert priority(level) == number


@pytest.mark.parametrize(
    ("wanted", "journal", "found"),
    [
        ("auto", True, "journal"),
        ("auto", False, "terminal"),
        ("plain", True, "plain"),
        ("json", True, "json"),
        ("json", False, "json"),
        ("journal", False, "journal"),
    ],
)
def test_what_a_setting_comes_to(wanted: str, journal: bool, found: str) -> None:
    assert shape(wanted, journal=journal) == found


def test_an_instant_is_in_utc() -> None:
    assert instant(0.0) == "1970-01-01T00:00:00.000Z"


def test_the_journals_stream_is_what_systemd_says() -> None:
    assert journal_stream({"JOURNAL_STREAM": "8:123"}) == "8:123"
    assert journal_stream({}) == ""
