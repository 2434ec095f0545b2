"""What a service manager is told, and when, decides whether a pool that is merely slow is killed and whether one that is stuck
goes on for ever: each rule is a transcript here, with the clock as an argument.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest

from embedpool.supervise.notices import EXTEND_BY_S, EXTEND_EVERY_S, STATUS_CHARS, Notices, Phase, Sight, status

PREPARING = Sight(phase="preparing", model="minilm")
STARTING = Sight(phase="starting", model="minilm", endpoint="ipc:///run/embedpool/embedpool.sock", workers=4)
SERVING = replace(STARTING, phase="serving", ready=4)
RELOADING = replace(SERVING, phase="reloading")
STOPPING = replace(SERVING, phase="stopping", stops_within_s=30.0)
WATCHDOG_S = 30.0


def _plain(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("STATUS=")]


def _at(notices: Notices, sight: Sight, seconds: list[float]) -> list[list[str]]:
    return [_plain(notices.due(sight, now)) for now in seconds]


def test_a_usual_life() -> None:
    notices = Notices(WATCHDOG_S)
    assert notices.due(PREPARING, 0.0) == [
        "EXTEND_TIMEOUT_USEC=30000000",
        "STATUS=preparing minilm: a download or a conversion may take minutes",
    ]
    assert notices.due(PREPARING, 1.0) == []
    assert notices.due(STARTING, 2.0) == ["EXTEND_TIMEOUT_USEC=30000000", "STATUS=starting minilm: 0 of 4 workers ready"]
    assert notices.due(replace(SERVING, ready=1), 3.0) == [
        "READY=1",
        "WATCHDOG=1",
        "STATUS=serving minilm at ipc:///run/embedpool/embedpool.sock: 1 of 4 workers ready",
    ]
    assert notices.due(SERVING, 3.5) == ["STATUS=serving minilm at ipc:///run/embedpool/embedpool.sock: 4 of 4 workers ready"]
    assert notices.due(SERVING, 4.0) == []
    assert _plain(notices.due(STOPPING, 5.0)) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=60000000"]


@pytest.mark.parametrize("sight", [PREPARING, STARTING])
def test_time_is_asked_for_as_long_as_a_start_takes_and_long_before_what_was_given_ends(sight: Sight) -> None:
    notices = Notices(0.0)
    asked = [now for now in range(600) if any(line.startswith("EXTEND") for line in notices.due(sight, float(now)))]
    assert asked[0] == 0
    gaps = [later - before for before, later in pairwise(asked)]
    assert set(gaps) == {EXTEND_EVERY_S}
    assert EXTEND_BY_S > 3 * EXTEND_EVERY_S


def test_no_time_is_asked_for_by_a_pool_that_serves() -> None:
    notices = Notices(0.0)
    assert _at(notices, SERVING, [0.0, 10.0, 100.0, 1000.0]) == [["READY=1"], [], [], []]


def test_ready_is_not_said_before_a_pool_serves() -> None:
    notices = Notices(WATCHDOG_S)
    for now in range(100):
        assert "READY=1" not in notices.due(PREPARING if now < 50 else STARTING, float(now))


def test_the_watchdog_is_fed_twice_in_its_time_and_not_before_the_pool_serves() -> None:
    notices = Notices(WATCHDOG_S)
    assert "WATCHDOG=1" not in notices.due(STARTING, 0.0)
    fed = [now for now in range(1, 200) if "WATCHDOG=1" in notices.due(SERVING, float(now))]
    assert fed == list(range(1, 200, 15))


def test_a_pool_that_makes_no_progress_is_not_fed_and_is_again_as_soon_as_it_does() -> None:
    notices, stuck = Notices(WATCHDOG_S), replace(SERVING, progress=False)
    assert _at(notices, SERVING, [0.0]) == [["READY=1", "WATCHDOG=1"]]
    assert _at(notices, stuck, [15.0, 20.0, 29.0]) == [[], [], []]
    assert _at(notices, SERVING, [29.5]) == [["WATCHDOG=1"]]


def test_nobody_is_fed_where_nobody_watches() -> None:
    notices = Notices(0.0)
    for now in range(100):
        assert "WATCHDOG=1" not in notices.due(SERVING, float(now))


def test_a_reload_is_announced_with_the_clock_and_ends_with_ready() -> None:
    notices = Notices(0.0)
    assert _at(notices, SERVING, [0.0]) == [["READY=1"]]
    assert _at(notices, RELOADING, [12.5, 13.0]) == [
        ["RELOADING=1", "MONOTONIC_USEC=12500000", "EXTEND_TIMEOUT_USEC=30000000"],
        [],
    ]
    assert _at(notices, SERVING, [14.0, 14.5]) == [["READY=1"], []]


def test_more_time_moves_the_watchdog_too_so_a_stuck_reload_gets_none() -> None:
    notices = Notices(WATCHDOG_S)
    _at(notices, RELOADING, [0.0])
    assert _at(notices, replace(RELOADING, progress=False), [20.0, 40.0, 60.0]) == [[], [], []]


def test_after_stopping_nothing_is_said_of_readiness_or_progress() -> None:
    notices = Notices(WATCHDOG_S)
    _at(notices, SERVING, [0.0])
    said = [line for now in range(1, 60) for line in _plain(notices.due(STOPPING, float(now)))]
    assert said[0] == "STOPPING=1"
    assert {line.partition("=")[0] for line in said[1:]} == {"EXTEND_TIMEOUT_USEC"}


# ── the sentence for people ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sight", "words"),
    [
        (replace(SERVING, ready=3, missing="worker 1 ended (SIGKILL)"), "3 of 4 workers ready; worker 1 ended (SIGKILL)"),
        (replace(SERVING, restarts=1), "4 of 4 workers ready; 1 restart"),
        (replace(SERVING, restarts=7), "4 of 4 workers ready; 7 restarts"),
        (RELOADING, "; reloading"),
        (replace(SERVING, not_reloaded="no such model"), "; the last reload changed nothing: no such model"),
        (replace(SERVING, failed="the model is gone"), "failed, no request is answered: the model is gone"),
        (replace(STOPPING, failed="the model is gone"), "failed, no request is answered: the model is gone"),
    ],
)
def test_the_status_says_what_is_not_as_it_should_be(sight: Sight, words: str) -> None:
    assert words in status(sight)


@pytest.mark.parametrize("phase", ["preparing", "starting", "serving", "reloading", "stopping"])
def test_a_status_is_one_short_line_whatever_a_reason_holds(phase: Phase) -> None:
    reason = "first\nREADY=1\n" + "long " * 500
    said = status(replace(SERVING, phase=phase, missing=reason, not_reloaded=reason, failed=reason))
    assert "\n" not in said
    assert len(said) <= STATUS_CHARS
    (line,) = [line for line in Notices(0.0).due(replace(SERVING, missing=reason), 0.0) if line.startswith("STATUS=")]
    assert re.fullmatch(r"STATUS=[^\n]*", line)
