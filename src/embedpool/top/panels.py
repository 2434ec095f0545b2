"""The parts of the screen, each for a given number of columns. Pure: text in, styles by name of colour only, so that the
terminal's own palette decides, light or dark. `screen` puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text

from embedpool.top import words
from embedpool.top.history import BARS, BARS_ASCII, Values, chart
from embedpool.top.view import Seat, Snapshot

STATE_STYLES = {
    "serving": "bold green",
    "busy": "green",
    "idle": "dim",
    "starting": "yellow",
    "waiting": "yellow",
    "retiring": "yellow",
    "draining": "bold red",
    "failed": "bold red",
    "hung": "bold red",
    "away": "bold red",
}
LABEL, NUMBER, CHART, BULK = "cyan", "bold", "green", "magenta"
WIDE = 108  # columns within the frame: from here on the table of workers has all its columns
ESTIMATES_FROM = 90  # columns that what is said of sessions takes with the error of estimates
BUSY_FROM, HOT_FROM = 0.6, 0.9  # of a worker's time: from here on yellow, and red


@dataclass(frozen=True, slots=True)
class Look:
    """`ascii`: the terminal's encoding has no blocks. `live`: somebody may press keys."""

    ascii: bool = False
    live: bool = True

    @property
    def bars(self) -> str:
        return BARS_ASCII if self.ascii else BARS

    def gauge(self, share: float | None, width: int) -> Text:
        """A bar of `width` columns, full at 1."""
        if share is None:
            return Text(" " * width)
        full = round(share * width)
        style = "red" if share >= HOT_FROM else "yellow" if share >= BUSY_FROM else "green"
        block, rest = ("#", ".") if self.ascii else ("━", "─")
        return Text.assemble((block * full, style), (rest * (width - full), "dim"))


LOOK = Look()


def fit(text: Text, width: int, look: Look = LOOK) -> Text:
    """Exactly `width` columns, on one line. What is no character to be seen becomes a space: reasons and names come from
    elsewhere, and an escape sequence in one would be the terminal's to obey."""
    text = text.copy()
    text.plain = "".join(letter if letter.isprintable() else " " for letter in text.plain)
    text.truncate(max(0, width), overflow="ellipsis", pad=True)
    if look.ascii:
        text.plain = text.plain.translate({ord("–"): "-", ord("…"): "~"}).encode("ascii", "replace").decode()
    text.no_wrap = True
    return text


def joined(lines: Iterable[Text], width: int, look: Look = LOOK) -> Text:
    """One Text of lines that are all cut to the width."""
    whole = Text("\n").join(fit(line, width, look) for line in lines)
    whole.no_wrap, whole.overflow = True, "crop"
    return whole


def title(seen: Snapshot, away: str, width: int) -> list[Text]:
    """What serves, its state and, where something is wrong, why; a line or two more for a long reason."""
    state = "away" if away else seen.state
    left = Text.assemble((" embedpool ", "bold reverse"), "  ", (seen.model or "no pool yet", "bold"))
    if seen.dim:
        left.append(f"  {seen.precision + ', ' if seen.precision else ''}{seen.dim} dimensions", "dim")
    right = Text.assemble(
        (state, STATE_STYLES.get(state, "yellow")), ("" if away else f", up {words.duration(seen.uptime_s)} ", "")
    )
    if seen.reload.state == "running":
        right = Text.assemble(("reloading", "bold yellow"), "  ", right)
    left.truncate(max(0, width - right.cell_len - 2), overflow="ellipsis")
    gap = max(1, width - left.cell_len - right.cell_len)
    return [Text.assemble(left, " " * gap, right), *_troubles(seen, away, width)]


def _troubles(seen: Snapshot, away: str, width: int) -> list[Text]:
    failed = f"the last reload changed nothing: {seen.reload.reason}" if seen.reload.state == "failed" else ""
    found = []
    for reason, style in ((away, "bold red"), (seen.reason, "bold red"), (failed, "red")):
        if reason:
            said = " " + " ".join(reason.split())
            found += [Text(said[:width], style)] + ([Text(" " + said[width:], style)] if len(said) > width else [])
    return found


def throughput(seen: Snapshot, series: dict[str, Values], width: int, look: Look) -> list[Text]:
    """Seven lines: what is done per second, with sparklines, and how well the model's runs were filled."""
    rates = seen.rates
    figures = (
        ("texts/s", words.count(rates.rows if rates else None), series["rows"], None, CHART),
        ("tokens/s", words.count(rates.tokens if rates else None), series["tokens"], None, CHART),
        ("requests/s", words.count(rates.requests if rates else None), series["requests"], None, CHART),
        ("refused/s", words.count(rates.refused if rates else None), series["refused"], None, "red"),
        ("workers busy", words.share(seen.busy), series["busy"], 1.0, "yellow"),
    )
    room = max(0, width - 23)
    found = [
        Text.assemble(
            (f"{name:<12}", LABEL), (f"{number:>9}  ", NUMBER), (chart(values, room, top=top, bars=look.bars)[0], style)
        )
        for name, number, values, top, style in figures
    ]
    for name, number, meaning in (
        ("tokens/run", words.count(seen.tokens_per_run), "real ones"),
        ("padding", words.share(seen.padding), "of tokens"),
    ):
        found.append(Text.assemble((f"{name:<12}", LABEL), (f"{number:>9}  ", NUMBER), (meaning, "dim")))
    return found


def latency(seen: Snapshot, series: dict[str, Values], width: int, look: Look) -> list[Text]:
    """Seven lines: percentiles of both classes, in total and of two stages, with the p95 of the last intervals beside them."""
    room = max(0, width - 38)
    found = [Text(f"{'milliseconds':<12}{'p50':>8}{'p95':>8}{'p99':>8}", "dim")]
    for name, style in (("interactive", CHART), ("bulk", BULK)):
        spark = chart(series[name], min(room, 60), 3, bars=look.bars) if room >= 4 else ["", "", ""]
        for (stage, label), drawn in zip((("total", name), ("queue", "  queue"), ("run", "  run")), spark, strict=True):
            of = seen.latency(name, stage)
            numbers = "".join(f"{words.ms(value):>8}" for value in (of.p50, of.p95, of.p99))
            bold = stage == "total"
            found.append(
                Text.assemble(
                    (f"{label:<12}", LABEL if bold else "dim"), (numbers, NUMBER if bold else ""), "  ", (drawn, style)
                )
            )
    return found


def facts(seen: Snapshot, series: dict[str, Values], width: int, look: Look) -> list[Text]:
    """Three lines: what waits, who asks, what was refused."""
    queue, sessions = seen.queue, seen.sessions
    waits = "empty"
    if queue.requests:
        waits = f"{words.many(queue.requests, 'request')}, {words.many(queue.rows, 'text')}"
        waits += f", about {words.ms(queue.estimated_ms)} ms"
        waits += f", oldest {words.ms(queue.oldest_ms)} ms" if queue.oldest_ms is not None else ""
    first = Text.assemble((f"{'queue':<10}", LABEL), waits, "  ")
    first.append(chart(series["waiting"], min(60, max(0, width - first.cell_len)), bars=look.bars)[0], "yellow")
    shm = f"{words.many(sessions.segments, 'segment')} of {words.size(sessions.segment_bytes)}"
    asks = f"{sessions.open:,} open, {words.many(sessions.requests_open, 'request')} in them, {shm}"
    if seen.cost_error is not None and width >= ESTIMATES_FROM:
        asks += f"; estimates off by {words.share(seen.cost_error)}"
    refused = words.codes(seen.refused, seen.refused_lately)
    return [
        first,
        Text.assemble((f"{'sessions':<10}", LABEL), asks),
        Text.assemble((f"{'refused':<10}", LABEL), (refused, "red" if seen.refused_lately else "")),
    ]


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    width: int
    align: Literal["<", ">"] = ">"


def workers(seats: Sequence[Seat], width: int, most: int, look: Look) -> list[Text]:
    """A heading and at most `most` lines; where not all fit, the last says how many more there are and what they do."""
    columns = _columns(seats, width)
    heading = "".join(f"{c.name:{c.align}{c.width}}  " for c in columns) + "job"
    shown = list(seats) if len(seats) <= most else sorted(seats, key=_urgency)[: max(0, most - 1)]
    shown.sort(key=lambda seat: seat.index)
    found = [Text(heading, "dim"), *(_worker(seat, columns, look) for seat in shown)]
    if len(shown) < len(seats):
        left = [seat.state for seat in seats if seat not in shown]
        states = ", ".join(f"{left.count(state)} {state}" for state in sorted(set(left)))
        found.append(Text(f"and {words.many(len(left), 'more worker')}: {states}", "dim"))
    return found[: most + 1]


def _columns(seats: Sequence[Seat], width: int) -> tuple[Column, ...]:
    """A narrow screen leaves out what `embedpool status` has as well: process ids, and restarts while there are none."""
    core = min(14, max([5, *(len(words.cores(seat.cores)) for seat in seats)]))
    columns = [Column("worker" if width >= WIDE else "#", 6 if width >= WIDE else 3)]
    if width >= WIDE:
        columns.append(Column("pid", 8))
    columns += [Column("cores", core), Column("state", 8, "<"), Column("busy", min(20, max(12, width - 64)), "<")]
    columns += [Column("memory", 8), Column("texts/s", 7)]
    if width >= WIDE:
        columns.append(Column("restarts", 8))
    return tuple(columns)


def _urgency(seat: Seat) -> tuple[bool, int]:
    """What is neither idle nor busy must not be hidden by the end of the screen."""
    return seat.state in ("busy", "idle"), seat.index


def _worker(seat: Seat, columns: Sequence[Column], look: Look) -> Text:
    gauge = next(column.width for column in columns if column.name == "busy") - 6
    cells = {
        "worker": Text(str(seat.index)),
        "#": Text(str(seat.index)),
        "pid": Text(str(seat.pid), "dim"),
        "cores": Text(words.cores(seat.cores)),
        "state": Text(seat.state, STATE_STYLES.get(seat.state, "yellow")),
        "busy": Text.assemble(look.gauge(seat.busy, gauge), f" {words.share(seat.busy):>5}"),
        "memory": Text(words.size(seat.memory)),
        "texts/s": Text(words.count(seat.rows)),
        "restarts": Text(str(seat.restarts), "red" if seat.restarts else "dim"),
    }
    row = Text()
    for column in columns:
        cell = cells[column.name]
        cell.truncate(column.width, overflow="ellipsis")
        pad = " " * (column.width - cell.cell_len)
        row.append_text(Text.assemble(*((pad, cell) if column.align == ">" else (cell, pad)), "  "))
    job = seat.running
    if job is not None:
        kind, style = ("interactive", CHART) if job.interactive else ("bulk", BULK)
        row.append_text(Text.assemble(f"{job.rows:,} ", (kind, style), f" {words.ms(job.ms)} ms"))
    elif seat.restarts and columns[-1].name != "restarts":
        row.append(words.many(seat.restarts, "restart"), "red")
    return row
