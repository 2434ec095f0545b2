"""A snapshot as one line of plain text, for pipes, log files and terminals that cannot move the cursor. Pure."""

from __future__ import annotations

from embedpool.top import words
from embedpool.top.view import Snapshot


def line(seen: Snapshot, clock: str) -> str:
    """`clock` is how the line begins. What is not known is left out or "–"."""
    rates = seen.rates
    busy = sum(worker.state == "busy" for worker in seen.workers)
    parts = [
        f"{clock} {seen.state}" + (f" ({seen.reason})" if seen.reason else ""),
        f"texts/s {words.count(rates.rows if rates else None)}",
        f"tokens/s {words.count(rates.tokens if rates else None)}",
        f"requests/s {words.count(rates.requests if rates else None)}",
        f"refused/s {words.count(rates.refused if rates else None)}",
    ]
    for traffic in seen.classes:
        found = seen.latency(traffic.name)
        if found.p50 is not None:
            parts.append(f"{traffic.name} ms p50 {words.ms(found.p50)} p95 {words.ms(found.p95)} p99 {words.ms(found.p99)}")
    parts.append(f"waiting {words.count(seen.queue.rows)}")
    parts.append(f"workers {busy}/{len(seen.workers)} busy {words.share(seen.busy)}")
    if seen.reload.state in ("running", "failed"):
        parts.append(f"reload {seen.reload.state}" + (f" ({seen.reload.reason})" if seen.reload.reason else ""))
    return "  ".join(_plain(part) for part in parts)


def away(reason: str, clock: str) -> str:
    """Of a pool that does not answer."""
    return f"{clock} away  {_plain(reason)}"


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
