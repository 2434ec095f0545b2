"""Log records of embedpool's processes as lines on stderr. Every process calls `begin` once; what happens is told by `logging`.

A record is a sentence for people, and fields for programs (`extra=`, of which `event` names the kind of thing that happened).
Formats: *auto* is journal where stderr is the journal, else what a person at a terminal reads; *plain* has time and level in
front; *json* is one object per line; *journal* puts the priority in front, which journald takes off and stores
(sd-daemon(3)), and leaves the time to it. JSON gets the priorities too where stderr is the journal.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from typing import Any, Literal, TypeAlias

from embedpool.config import journal_stream

Format: TypeAlias = Literal["terminal", "plain", "json", "journal"]

# syslog(3): LOG_CRIT, LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG
PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Lines(logging.Formatter):
    """Records as text. `process` says whose they are: embedpool, embedpool worker, embedpool router, embedpool gateway."""

    def __init__(self, process: str, shape: Format, *, priorities: bool) -> None:
        super().__init__()
        self._process, self._shape, self._priorities = process, shape, priorities

    def format(self, record: logging.LogRecord) -> str:
        text = self._object(record) if self._shape == "json" else self._sentence(record)
        if not self._priorities:
            return text
        # One in front of every line: journald makes an entry of each, and a traceback's would else be of another priority.
        return "\n".join(f"<{priority(record.levelno)}>{line}" for line in text.splitlines())

    def _sentence(self, record: logging.LogRecord) -> str:
        front = f"{instant(record.created)} {record.levelname.lower():7} " if self._shape == "plain" else ""
        trace = f"\n{_trace(record)}" if record.exc_info else ""
        return f"{front}{self._process}: {record.getMessage()}{trace}"

    def _object(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in OF_EVERY_RECORD}
        found: dict[str, Any] = {
            "time": instant(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            found["traceback"] = _trace(record)
        return json.dumps(found, ensure_ascii=False, default=str)


def priority(level: int) -> int:
    """syslog's number of a level of `logging`, which may lie between two that have names."""
    return next((number for least, number in PRIORITIES.items() if level >= least), 7)


def instant(seconds: float) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e3):03d}Z"


def shape(wanted: str, *, journal: bool) -> Format:
    """What a setting of `log_format` comes to where stderr is the journal, or is not."""
    if wanted == "auto":
        return "journal" if journal else "terminal"
    return "json" if wanted == "json" else "journal" if wanted == "journal" else "plain"


def to_journal() -> bool:
    """Whether stderr is the journal: systemd names its device and inode in JOURNAL_STREAM (systemd.exec(5)). A child whose
    stderr goes elsewhere has inherited the variable, so that both are compared."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return journal_stream() == f"{status.st_dev}:{status.st_ino}"


def begin(process: str, wanted: str, level: int = logging.WARNING) -> Format:
    """From now on embedpool's records of this level and above, and other libraries' warnings, go to stderr. May be called
    again, with other wishes."""
    journal = to_journal()
    found = shape(wanted, journal=journal)
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(Lines(process, found, priorities=journal or found == "journal"))
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(to_stderr)
    root.setLevel(logging.WARNING)
    logging.getLogger("embedpool").setLevel(level)
    return found


def _trace(record: logging.LogRecord) -> str:
    assert record.exc_info is not None
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()
