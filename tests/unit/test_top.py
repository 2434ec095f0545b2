"""What two status documents say about the time between them: rates, percentiles, shares, and what is drawn of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpool.top import lines, words
from embedpool.top.document import Histogram, read
from embedpool.top.history import BARS, BARS_ASCII, POINTS, WINDOW_S, History, chart
from embedpool.top.view import Percentiles, Reading, percentiles, quantile, snapshot

BOUNDS = [1.0, 2.0, 5.0, 10.0]


def histogram(*counts: int) -> dict[str, Any]:
    return {"le_ms": BOUNDS, "counts": list(counts), "sum_ms": 1.0}


def status(uptime_s: float, **keys: Any) -> dict[str, Any]:
    """A router's document; `keys` on top."""
    return {
        "state": "serving",
        "reason": "",
        "uptime_s": uptime_s,
        "pool": {"endpoint": "ipc:///run/embedpool.sock", "pid": "7"},
        "model": {"name": "echo:384", "dim": 384, "precision": "fp32", "prompts": []},
        "reload": {"count": 0, "state": "none", "reason": ""},
        "workers": [],
        "queue": {"requests": 0, "rows": 0, "bytes": 0, "estimated_ms": 0.0},
        "sessions": {"open": 1, "requests_open": 0, "segments": 1, "segment_bytes": 1 << 24},
        "cost": {"unit_ms": 1.0},
        "counters": {"requests": 0, "answered": 0, "refused": {}, "rows": 0, "tokens": 0},
        **keys,
    }


def reading(at: float, uptime_s: float, memory: dict[int, int] | None = None, **keys: Any) -> Reading:
    return Reading(at, read(json.dumps(status(uptime_s, **keys))), memory or {})


def counters(answered: int, rows: int, tokens: int, **refused: int) -> dict[str, Any]:
    return {
        "requests": answered + sum(refused.values()),
        "answered": answered,
        "rows": rows,
        "tokens": tokens,
        "refused": refused,
    }


def worker(index: int, pid: int, **keys: Any) -> dict[str, Any]:
    return {
        "index": index,
        "pid": pid,
        "cores": [index],
        "state": "idle",
        "restarts": 0,
        "jobs_done": 0,
        "rows_done": 0,
        **keys,
    }


# ── rates ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rate_is_over_the_routers_time_not_over_ours() -> None:
    before = reading(50.0, 10.0, counters=counters(100, 1000, 5000, overloaded=1))
    now = reading(53.5, 12.0, counters=counters(140, 1600, 9000, overloaded=4, expired=1))
    rates = snapshot(now, before).rates
    assert rates is not None
    assert (rates.requests, rates.rows, rates.tokens, rates.refused) == (20, 300, 2000, 2)
    assert snapshot(now, before).refused_lately == {"overloaded": 3, "expired": 1}


def test_the_first_reading_has_no_rates() -> None:
    seen = snapshot(reading(50.0, 10.0, counters=counters(100, 1000, 5000), workers=[worker(0, 5, busy_s=3.0)]))
    assert seen.rates is None and seen.workers[0].busy is None and seen.refused_lately == {}


@pytest.mark.parametrize(
    ("uptime_s", "answered"),
    [(4.0, 80), (30.0, 80), (30.0, 5000)],
    ids=["its uptime is less", "its counters are less", "it began when the other one was there"],
)
def test_a_router_that_was_replaced_counts_from_its_own_start(uptime_s: float, answered: int) -> None:
    before = reading(50.0, 20.0, counters=counters(1000, 1000, 1000, overloaded=9))
    now = reading(50.0 + 40.0, uptime_s, counters=counters(answered, 400, 4000, overloaded=8))
    seen = snapshot(now, before)
    assert seen.rates is not None
    assert seen.rates.requests == answered / uptime_s
    assert seen.rates.refused == 8 / uptime_s
    assert seen.refused_lately == {"overloaded": 8}


def test_an_answer_that_was_on_its_way_for_two_seconds_is_not_another_router() -> None:
    before = reading(50.0, 20.0, counters=counters(1000, 1000, 1000))
    now = reading(53.0, 21.0, counters=counters(1010, 1010, 1010))
    rates = snapshot(now, before).rates
    assert rates is not None and rates.requests == 10


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 1000), st.floats(0, 1e6)), min_size=2, max_size=12))
def test_nothing_is_ever_less_than_nothing(story: list[tuple[float, int, float]]) -> None:
    history = History()
    for at, (uptime_s, count, busy_s) in enumerate(story):
        kind = {"requests": count, "answered": count, "rows": count, "stages": {"total": histogram(count, 0, 1, 0, 0)}}
        seen = history.observe(
            reading(
                float(at),
                uptime_s,
                counters=counters(count, count, count, overloaded=count),
                classes={"interactive": kind, "bulk": kind},
                runs={"count": count, "rows": count, "tokens": count, "padded_tokens": 2 * count},
                workers=[worker(0, 5, busy_s=busy_s, rows_done=count)],
            )
        )
        figures = [seen.busy, seen.padding, *(traffic.rows for traffic in seen.classes), seen.latency("bulk").p95]
        rates = seen.rates
        if rates is not None:
            figures += [rates.requests, rates.rows, rates.tokens, rates.refused]
        assert all(figure is None or figure >= 0 for figure in figures)
        assert seen.busy is None or seen.busy <= 1


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_workers_share_is_that_of_its_process() -> None:
    before = reading(0.0, 10.0, workers=[worker(0, 5, busy_s=3.0, rows_done=10), worker(1, 6, busy_s=9.0)])
    now = reading(2.0, 12.0, {5: 80_000_000}, workers=[worker(0, 5, busy_s=4.5, rows_done=40), worker(1, 7, busy_s=0.2)])
    first, second = snapshot(now, before).workers
    assert (first.busy, first.rows, first.memory) == (0.75, 15.0, 80_000_000)
    assert (second.busy, second.rows, second.memory) == (None, None, None), "another process in the same place"
    assert snapshot(now, before).busy == 0.75


def test_an_older_router_does_not_say_everything() -> None:
    before, now = (reading(at, at + 10, workers=[worker(0, 5)]) for at in (0.0, 1.0))
    seen = snapshot(now, before)
    assert seen.workers[0].busy is None and seen.workers[0].running is None
    assert seen.classes == () and seen.latency("bulk") == Percentiles()
    assert seen.padding is None and seen.tokens_per_run is None and seen.cost_error is None and seen.queue.oldest_ms is None
    assert "interactive" not in lines.line(seen, "12:00:00")


def test_what_is_no_status_is_a_value_error() -> None:
    for text in ("", "{", "[]", "{}", '{"state": 3}', '{"state": "serving", "workers": [{"pid": 3}]}'):
        with pytest.raises(msgspec.DecodeError):
            read(text)


def test_keys_of_a_newer_router_are_ignored() -> None:
    assert read(json.dumps(status(1.0, weather="fine", workers=[worker(0, 5, mood="good")]))).workers[0].pid == 5


# ── percentiles ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([4, 0, 0, 0, 0], 0.5, 0.5),  # evenly spread over 0 to 1
        ([0, 0, 4, 0, 0], 0.5, 3.5),
        ([0, 0, 4, 0, 0], 1.0, 5.0),
        ([2, 2, 0, 0, 0], 0.5, 1.0),
        ([1, 0, 0, 0, 3], 0.99, 10.0),  # slower than all bounds: all that is known
        ([0, 0, 0, 0, 0], 0.5, None),
    ],
)
def test_percentiles_are_interpolated_within_a_bucket(counts: list[int], share: float, expected: float | None) -> None:
    assert quantile(tuple(BOUNDS), counts, share) == expected


@given(st.lists(st.integers(0, 50), min_size=5, max_size=5), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_percentiles_rise(counts: list[int], shares: list[float]) -> None:
    found = [quantile(tuple(BOUNDS), counts, share) for share in sorted(shares)]
    if sum(counts):
        known = [value for value in found if value is not None]
        assert known == sorted(known) and len(known) == len(found)
        assert all(0 <= value <= BOUNDS[-1] for value in known)
    else:
        assert found == [None] * len(found)


def test_percentiles_are_of_what_came_between() -> None:
    old, new = (Histogram(le_ms=tuple(BOUNDS), counts=counts) for counts in ((100, 0, 0, 0, 0), (100, 0, 4, 0, 0)))
    assert percentiles(new, old).p50 == 3.5
    assert percentiles(old, old) == Percentiles()
    other = Histogram(le_ms=(7.0,), counts=(1, 0))
    assert percentiles(new, other) == percentiles(new), "buckets that are others cannot be taken off"


def test_percentiles_look_further_back_than_rates() -> None:
    history = History()
    seen = None
    for second in range(30):  # one request a second, the first twenty slow
        slow, fast = min(second, 20), max(0, second - 20)
        kind = {"answered": second, "stages": {"total": histogram(fast, 0, 0, slow, 0)}}
        seen = history.observe(reading(float(second), 100.0 + second, classes={"interactive": kind}))
    assert seen is not None
    assert seen.latency("interactive").p50 == pytest.approx(5 / 9)  # nine fast ones, one slow
    assert seen.latency("interactive").p99 == pytest.approx(5 + 5 * 0.9)
    assert history.interactive_ms[-1] == 0.95, "a point of the sparkline is one interval's"
    assert len(history.readings) <= WINDOW_S + 2


# ── history and its pictures ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_that_was_away_leaves_a_gap() -> None:
    history = History()
    history.observe(reading(0.0, 10.0))
    history.observe(reading(1.0, 11.0, counters=counters(5, 5, 5)))
    history.missed()
    history.observe(reading(3.0, 0.5, counters=counters(1, 1, 1)))
    assert list(history.requests) == [5.0, None, 2.0]


def test_history_ends_somewhere() -> None:
    history = History()
    for _ in range(POINTS + 5):
        history.missed()
    assert len(history.tokens) == POINTS


def test_the_newest_value_is_at_the_right_and_the_greatest_is_full() -> None:
    assert chart([0.0, None, 4.0, 8.0], 6) == ["  ▁ ▄█"]
    assert chart([1.0, 2.0, 4.0, 8.0], 2) == ["▄█"]
    assert chart([8.0, 16.0], 2, 2) == [" █", "██"]
    assert chart([0.5], 1, top=1.0) == ["▄"]
    assert chart([0.0, 0.0], 2) == ["▁▁"]
    assert chart([4.0, 8.0], 2, bars=BARS_ASCII) == [":#"]


@given(
    st.lists(st.none() | st.floats(0, 1e12), max_size=30),
    st.integers(0, 40),
    st.integers(1, 5),
    st.sampled_from([BARS, BARS_ASCII]),
)
def test_a_chart_is_as_large_as_it_was_asked_to_be(values: list[float | None], width: int, height: int, bars: str) -> None:
    drawn = chart(values, width, height, bars=bars)
    assert [len(line) for line in drawn] == [width] * height
    assert set("".join(drawn)) <= set(bars)


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.count(None), "–"),
        (words.count(0.0), "0"),
        (words.count(3.21), "3.2"),
        (words.count(12345.6), "12,346"),
        (words.count(1_234_567), "1.23 M"),
        (words.ms(0.04), "0.04"),
        (words.ms(123_456), "123 s"),
        (words.share(0.256), "26 %"),
        (words.size(73_600_000), "73.6 MB"),
        (words.size(123_456_789_000), "123.5 GB"),
        (words.duration(42.9), "42 s"),
        (words.duration(187), "3:07 min"),
        (words.duration(86_400 * 12 + 5 * 3600 + 61), "12 d 5:01:01"),
        (words.cores((0, 1, 2, 5, 7, 8)), "0-2,5,7-8"),
        (words.cores(()), "any"),
        (words.many(1, "text"), "1 text"),
        (words.many(2000, "text"), "2,000 texts"),
        (words.codes({"expired": 1, "overloaded": 12}, {"overloaded": 3}), "12 overloaded (+3), 1 expired"),
        (words.codes({}, {}), "none"),
    ],
)
def test_numbers_as_people_read_them(said: str, expected: str) -> None:
    assert said == expected


@given(st.floats(0, 1e14))
def test_numbers_keep_to_their_columns(value: float) -> None:
    assert len(words.count(value)) <= 7
    assert len(words.ms(value)) <= 9


def test_a_line_says_what_is_wrong() -> None:
    seen = snapshot(reading(0.0, 1.0, state="failed", reason="no model\n\x1b[2J", reload={"state": "failed", "reason": "r"}))
    assert lines.line(seen, "12:00:00").startswith("12:00:00 failed (no model  [2J)")
    assert lines.line(seen, "12:00:00").endswith("reload failed (r)")
    assert lines.away("no pool\nthere", "12:00:01") == "12:00:01 away  no pool there"
