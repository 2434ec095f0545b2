"""W3C Trace Context (https://www.w3.org/TR/trace-context/), as much of it as whoever passes one on must know. Pure."""

from __future__ import annotations

import re

# Version ff and ids of zeros are invalid (2.2); later versions may have more behind the flags, version 00 has not (4.3).
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_FLAGS = slice(53, 55)
SAMPLED = 1  # the flag of who asks: it records this trace
MOST_STATE_CHARS = 512  # what everybody has to pass on (3.3.1.5); more may be left out


def is_valid(traceparent: str) -> bool:
    """Whether it names a span. What does not is to be treated as if nothing had been said (3.2.2.3)."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found is not None and traceparent.isascii() and not (found[1] == "00" and found[2])


def is_sampled(traceparent: str) -> bool:
    """Whether the trace of a valid one is recorded."""
    return bool(int(traceparent[_FLAGS], 16) & SAMPLED)


def passed_on(traceparent: str, tracestate: str) -> tuple[str, str]:
    """Both as they go on from here: nothing for what names no span, and no state where it is too long or no ASCII."""
    if not is_valid(traceparent) or len(traceparent) > MOST_STATE_CHARS:
        return "", ""
    return traceparent, tracestate if len(tracestate) <= MOST_STATE_CHARS and tracestate.isascii() else ""
