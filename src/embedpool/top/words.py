"""Numbers as people read them, in few columns. Pure."""

from __future__ import annotations

from collections.abc import Mapping

NONE = "–"


def count(value: float | None) -> str:
    """At most 7 columns: 3.2, 987, 12,345, 1.23 M, …"""
    if value is None:
        return NONE
    if value < 9.95 and value != int(value):
        return f"{value:.1f}"
    if value < 999_999.5:
        return f"{value:,.0f}"
    for size, unit in ((1e6, "M"), (1e9, "G")):
        if value < 999.5 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e12:.3g} T"


def ms(value: float | None) -> str:
    """Milliseconds, at most 7 columns, from a minute on in seconds."""
    if value is None:
        return NONE
    if value < 60_000:
        return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"
    return f"{count(round(value / 1000))} s"


def share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def size(value: float | None) -> str:
    """Bytes in MB (10^6), from 10 GB on in GB."""
    if value is None:
        return NONE
    return f"{value / 1e6:,.1f} MB" if value < 100e6 else f"{value / 1e6:,.0f} MB" if value < 10e9 else f"{value / 1e9:,.1f} GB"


def duration(seconds: float) -> str:
    """42 s, 3:07 min, 5:03:07, 12 d 5:03:07."""
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours}:{minutes:02}:{whole % 60:02}"
    if hours:
        return f"{hours}:{minutes:02}:{whole % 60:02}"
    return f"{minutes}:{whole % 60:02} min" if minutes else f"{whole} s"


def many(number: int, noun: str) -> str:
    """ "1 request", "2,000 requests"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def codes(refused: Mapping[str, int], lately: Mapping[str, int]) -> str:
    """ "12 overloaded (+3), 1 expired": the most frequent first."""
    said = [
        f"{count(n)} {code}" + (f" (+{count(lately[code])})" if code in lately else "")
        for code, n in sorted(refused.items(), key=lambda item: -item[1])
        if n
    ]
    return ", ".join(said) or "none"


def cores(numbers: tuple[int, ...]) -> str:
    """ "0-3,8"; "any" for none: not pinned."""
    if not numbers:
        return "any"
    ordered, spans = sorted(set(numbers)), []
    first = last = ordered[0]
    for number in [*ordered[1:], None]:
        if number == last + 1:
            last = number
            continue
        spans.append(f"{first}" if first == last else f"{first}-{last}")
        if number is not None:
            first = last = number
    return ",".join(spans)
