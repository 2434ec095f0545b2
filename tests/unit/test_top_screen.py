"""The screen of `embedpool top`: it fits, whatever the pool says, and what matters is on it."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from embedpool.top.history import History
from embedpool.top.panels import Look
from embedpool.top.screen import screen, waiting
from embedpool.top.view import Snapshot
from tests.unit.test_top import counters, histogram, reading, worker

STATES = ("idle", "busy", "starting", "waiting", "hung", "retiring")


def rendered(shown: RenderableType, width: int, height: int = 100, encoding: str = "utf-8", **options: Any) -> str:
    target = io.TextIOWrapper(io.BytesIO(), encoding)  # an encoding that has no blocks makes rich use others
    console = Console(file=target, width=width, height=height, highlight=False, legacy_windows=False, **options)
    console.print(shown)
    target.seek(0)
    return target.read()


def watched(seconds: int, **keys: Any) -> tuple[Snapshot, History]:
    """A pool seen for some seconds, with traffic; `keys` of its last documents."""
    history, seen = History(), None
    for second in range(seconds + 1):
        kind = {
            "requests": 30 * second,
            "answered": 30 * second,
            "rows": 40 * second,
            "stages": {name: histogram(0, 10 * second, 20 * second, 0, 0) for name in ("total", "queue", "run", "tokenize")},
        }
        said = {
            "counters": counters(30 * second, 40 * second, 4000 * second, overloaded=second),
            "classes": {"interactive": kind, "bulk": kind},
            "runs": {"count": second, "rows": 16 * second, "tokens": 900 * second, "padded_tokens": 1000 * second},
            "workers": [worker(i, 100 + i, busy_s=0.5 * second, rows_done=20 * second) for i in range(2)],
            **keys,
        }
        seen = history.observe(reading(float(second), 100.0 + second, {100: 73_000_000}, **said))
    assert seen is not None
    return seen, history


def fits(text: str, width: int, height: int) -> bool:
    found = text.splitlines()
    return len(found) <= height and all(cell_len(line) <= width for line in found)


COUNT = st.integers(0, 10**15)
TIME = st.floats(0, 1e15)
TEXT = st.text(max_size=300)
KIND = st.fixed_dictionaries(
    {
        "answered": COUNT,
        "rows": COUNT,
        "stages": st.dictionaries(st.sampled_from(["total", "queue", "run"]), st.just(histogram(1, 2, 3, 4, 5))),
    }
)
RUNNING = st.none() | st.fixed_dictionaries({"rows": COUNT, "ms": TIME, "interactive": st.booleans()})
WORKER = st.fixed_dictionaries(
    {
        "index": st.integers(0, 999),
        "pid": st.integers(0, 1 << 22),
        "cores": st.lists(st.integers(0, 1023), max_size=40),
        "state": st.sampled_from(STATES) | TEXT,
        "restarts": COUNT,
        "rows_done": COUNT,
        "busy_s": st.none() | TIME,
        "running": RUNNING,
    }
)
STATUS = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(["serving", "draining", "failed", "starting"]) | TEXT,
        "reason": TEXT,
        "workers": st.lists(WORKER, max_size=70),
        "model": st.fixed_dictionaries({"name": TEXT, "dim": COUNT, "precision": TEXT}),
        "reload": st.fixed_dictionaries(
            {"count": COUNT, "state": st.sampled_from(["none", "running", "failed"]), "reason": TEXT}
        ),
        "counters": st.builds(
            lambda a, r: {**counters(a, a, a), "refused": r}, COUNT, st.dictionaries(TEXT, COUNT, max_size=20)
        ),
        "classes": st.dictionaries(st.sampled_from(["interactive", "bulk", "other"]), KIND),
        "queue": st.fixed_dictionaries(
            {"requests": COUNT, "rows": COUNT, "bytes": COUNT, "estimated_ms": TIME, "oldest_ms": TIME}
        ),
        "sessions": st.fixed_dictionaries({"open": COUNT, "requests_open": COUNT, "segments": COUNT, "segment_bytes": COUNT}),
        "cost": st.fixed_dictionaries({"error": TIME}),
    },
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(STATUS, min_size=1, max_size=3),
    st.sampled_from([(80, 24), (120, 40), (72, 22), (200, 60)]) | st.tuples(st.integers(1, 160), st.integers(1, 60)),
    st.just("") | TEXT,
)
def test_whatever_a_pool_says_fits(story: list[dict[str, Any]], place: tuple[int, int], away: str) -> None:
    history, (width, height) = History(), place
    for second, keys in enumerate(story):
        seen = history.observe(reading(float(second), 100.0 + second, **keys))
    text = rendered(screen(seen, history, width, height, away=away), width, height)
    assert fits(text, width, height)
    assert all(letter.isprintable() for line in text.split("\n") for letter in line), "no escape sequence of others"
    assert fits(rendered(waiting(away, width, height), width, height), width, height)


def test_80x24_is_filled_and_nothing_on_it_is_cut_off() -> None:
    text = rendered(screen(*watched(60), 80, 24), 80)
    assert len(text.splitlines()) <= 24 and "…" not in text
    for said in (
        "embedpool",
        "echo:384",
        "serving, up 2:40 min",
        "texts/s",
        "4,000",
        "refused/s",
        "50 %",
        "10 %",
        "p50",
        "p95",
    ):
        assert said in text, said
    for said in (
        "interactive",
        "bulk",
        "queue",
        "run",
        "sessions",
        "16.8 MB",
        "60 overloaded (+1)",
        "2 workers",
        "73.0 MB",
        "q quits",
    ):
        assert said in text, said
    assert "▆" in text or "█" in text


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_no_title_of_a_chart_is_cut_off(width: int) -> None:
    text = rendered(screen(*watched(60), width, 40), width)
    assert "tokens/s up to 4,000" in text and "p95" in text and "…" not in text


def test_120x40_has_charts_and_the_whole_table() -> None:
    text = rendered(screen(*watched(60), 120, 40), 120)
    assert "tokens/s up to 4,000" in text and "restarts" in text and "pid" in text
    assert len(text.splitlines()) > 24


def test_workers_that_do_not_fit_are_counted_and_those_in_trouble_are_shown() -> None:
    many = [worker(i, 100 + i, state="hung" if i == 50 else "busy" if i % 2 else "idle") for i in range(64)]
    text = rendered(screen(*watched(3, workers=many), 80, 24), 80)
    assert "64 workers" in text and "hung" in text
    assert "and 59 more workers: 30 busy, 29 idle" in text
    assert len(text.splitlines()) == 24


def test_a_running_job_is_beside_its_worker() -> None:
    seats = [
        worker(0, 100, state="busy", busy_s=1.0, running={"rows": 16, "ms": 12.34, "interactive": False}),
        worker(1, 101, restarts=3),
    ]
    text = rendered(screen(*watched(3, workers=seats), 80, 24), 80)
    assert "16 bulk 12.3 ms" in text and "3 restarts" in text


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"state": "failed", "reason": "no worker can start: the model is gone"}, "no worker can start: the model is gone"),
        ({"state": "draining"}, "draining"),
        ({"reload": {"state": "failed", "reason": "no such model"}}, "the last reload changed nothing: no such model"),
    ],
)
def test_what_is_wrong_is_said_in_red(keys: dict[str, Any], said: str) -> None:
    text = rendered(screen(*watched(2, **keys), 80, 24), 80, force_terminal=True, color_system="standard")
    line = next(line for line in text.splitlines() if said in line)
    assert "31m" in line.partition(said)[0][-8:]
    assert fits(rendered(screen(*watched(2, **keys), 80, 24), 80), 80, 24)


def test_what_waits_is_said_and_that_nothing_does() -> None:
    queue = {"requests": 2, "rows": 30, "bytes": 1, "estimated_ms": 250.0, "oldest_ms": 40.0}
    text = rendered(screen(*watched(2, queue=queue), 80, 24), 80)
    assert "2 requests, 30 texts, about 250 ms, oldest 40.0 ms" in text
    assert "empty" in rendered(screen(*watched(2), 80, 24), 80)


def test_a_reload_that_runs_is_said() -> None:
    assert "reloading" in rendered(screen(*watched(2, reload={"state": "running"}), 80, 24), 80)


def test_an_older_router_leaves_dashes() -> None:
    history = History()
    for second in range(3):
        seen = history.observe(reading(float(second), 10.0 + second, workers=[worker(0, 5)]))
    text = rendered(screen(seen, history, 80, 24), 80)
    assert "–" in text and "None" not in text and fits(text, 80, 24)


def test_a_pool_that_is_away_is_shown_as_such_with_what_was_last_known() -> None:
    text = rendered(screen(*watched(3), 80, 24, away="no pool answers at ipc:///run/x"), 80)
    assert "away" in text and "no pool answers at ipc:///run/x" in text and "echo:384" in text


def test_a_terminal_without_blocks_gets_ascii() -> None:
    seen, history = watched(30)
    text = rendered(screen(seen, history, 80, 24, look=Look(ascii=True)), 80, encoding="ascii")
    assert text.isascii() and "#" in text and fits(text, 80, 24)


def test_without_colour_there_is_none() -> None:
    text = rendered(screen(*watched(3), 80, 24), 80, force_terminal=True, no_color=True, color_system="standard")
    assert "31m" not in text and "32m" not in text


def test_a_small_window_shows_the_most_important_first() -> None:
    text = rendered(screen(*watched(3), 60, 10), 60)
    assert "texts/s" in text and "interactive" in text and fits(text, 60, 10)
