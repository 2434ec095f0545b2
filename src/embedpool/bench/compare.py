"""Two results side by side: ratios of medians, and whether the repeats tell them apart. Pure.

Two sides differ if the repeats of one lie all above those of the other. By chance alone, equal sides of n and m repeats do
that in 2 of (n+m)!/(n! m!) cases: 1 in 10 for three and three, 1 in 126 for five and five. Where even that would prove nothing
(CHANCE), the verdict says that there are too few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from embedpool.bench.numbers import LOWER, NEITHER, direction
from embedpool.bench.recording import PERCENTS, merged, percent_name, percentile_ms
from embedpool.bench.results import Point, Report, Spread

CHANCE = 0.1
SAME = 0.005  # of a difference that nobody would report, however sure it is

Verdict = Literal["better", "worse", "differs", "within noise", "too few repeats", "the same"]


@dataclass(frozen=True, slots=True)
class Row:
    """`ratio` is B's median over A's; None where one of them is no number or A's is zero."""

    name: str
    a: Spread
    b: Spread
    ratio: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Together:
    """A percentile of all repeats' queries in one histogram."""

    name: str
    a_ms: float | None
    b_ms: float | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two points that belong together, at one rate or the only ones of their reports. `chance` is how probable it is that the
    repeats of equal sides lie apart."""

    a: Point
    b: Point
    chance: float
    rows: tuple[Row, ...]
    together: tuple[Together, ...]


def pairs(a: Report, b: Report) -> tuple[Pair, ...]:
    """Points of equal rate; if there is none and each has one point, or one that its objective found, those."""
    by_rate = {point.rate: point for point in b.points}
    found = [(point, by_rate[point.rate]) for point in a.points if point.rate in by_rate]
    if not found:
        found = [(first, second) for first in _only(a) for second in _only(b)]
    return tuple(_pair(first, second) for first, second in found)


def _pair(a: Point, b: Point) -> Pair:
    chance = 2 / math.comb(len(a.runs) + len(b.runs), len(a.runs))
    return Pair(a, b, chance, tuple(_rows(a, b, chance)), _together(a, b))


def _only(report: Report) -> tuple[Point, ...]:
    held = report.objective.rate if report.objective else None
    if held is not None:
        return tuple(point for point in report.points if point.rate == held)
    return report.points if len(report.points) == 1 else ()


def _rows(a: Point, b: Point, chance: float) -> Iterator[Row]:
    for name, left in a.numbers.items():
        if name in b.numbers:
            right = b.numbers[name]
            yield Row(name, left, right, ratio(left.median, right.median), verdict(name, left, right, chance))


def ratio(a: float | None, b: float | None) -> float | None:
    return b / a if a and b is not None else None


def verdict(name: str, a: Spread, b: Spread, chance: float) -> Verdict:
    """`chance` as in Pair."""
    a_low, a_high, b_low, b_high = (_number(x) for x in (a.least, a.most, b.least, b.most))
    if a == b or abs(_number(a.median) - _number(b.median)) <= SAME * _number(a.median) < math.inf:
        return "the same"
    if a_low <= b_high and b_low <= a_high:
        return "within noise"
    if chance > CHANCE:
        return "too few repeats"
    better = direction(name)
    if better == NEITHER:
        return "differs"
    return "better" if (b_high < a_low) == (better == LOWER) else "worse"


def _number(value: float | None) -> float:
    """A latency that no answer has is longer than any."""
    return math.inf if value is None else value


def _together(a: Point, b: Point) -> tuple[Together, ...]:
    left, right = _latencies(a), _latencies(b)
    return tuple(Together(name, left[name], right[name]) for name in left if name in right)


def _latencies(point: Point) -> dict[str, float | None]:
    found = [run.queries.latency for run in point.runs if run.queries is not None]
    if not found:
        return {}
    histogram, failed = merged([each.histogram for each in found]), sum(sum(each.failed.values()) for each in found)
    return {percent_name(percent): percentile_ms(histogram, failed, percent) for percent in PERCENTS}


def differences(a: Report, b: Report) -> tuple[str, ...]:
    """What else is not alike: sentences, so that nobody takes another model or machine for another speed."""
    found = []
    for what in ("machine", "pool", "settings"):
        left, right = getattr(a, what), getattr(b, what)
        for name in left.__struct_fields__:
            first, second = getattr(left, name), getattr(right, name)
            if first != second and name != "endpoint":
                found.append(f"{what} {name}: {_short(first)} | {_short(second)}")
    return tuple(found)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}-{version}" for name, version in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
