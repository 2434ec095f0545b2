"""What the router notes of a request whose trace is recorded, and the packets in which it goes to the tracer. Pure.

All moments are CLOCK_MONOTONIC's, in seconds: it is one clock for all processes of a machine, and never set. The tracer turns
them into the time of day. Both ends are ours and of one version, so nothing is validated beyond its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from msgspec import Struct

PACKET_RECORDS = 32  # in one packet: a wake-up of the tracer is shared by so many requests
PACKET_BYTES = 1 << 18  # 32 records with everything at its longest (2 kB of jobs, 0.5 of state, 1.2 of message) are half of it
MOST_JOBS = 32  # of one request, whose stages are told one by one
MOST_MESSAGE_CHARS = 300

ANSWERED, DROPPED = "answered", "session_ended"  # outcomes; any other is the code of a refusal (errors.py)


class Work(Struct, frozen=True, gc=False, array_like=True):
    """What one job did for a request. From `began_s` to `tokenized_s` texts became tokens; then the model ran, until `ended_s`.
    `run_ms` is the part of it that was this job's own: urgent ones may have come between. `worker` is a place in the pool."""

    worker: int
    rows: int
    tokens: int
    began_s: float
    tokenized_s: float
    ended_s: float
    run_ms: float


class Record(Struct, frozen=True, array_like=True):
    """A request from its sending to its answer. `sent_s` 0: its client did not say.

    The first job began at `begun_s`, the last one ended at `computed_s`; `jobs` says of how many, which can be more than are
    told in `works`. Without any, `begun_s` is the end.
    """

    traceparent: str
    tracestate: str
    model: str
    interactive: bool
    rows: int
    dim: int
    tokens: int
    sent_s: float
    arrived_s: float
    begun_s: float
    computed_s: float
    ended_s: float
    outcome: str
    message: str
    jobs: int
    works: tuple[Work, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])


def packets(records: Sequence[Record]) -> Iterator[tuple[bytes, int]]:
    """The packets, and how many records are in each."""
    for first in range(0, len(records), PACKET_RECORDS):
        some = records[first : first + PACKET_RECORDS]
        yield _encoder.encode(some), len(some)


def unpacked(packet: bytes) -> list[Record]:
    return _decoder.decode(packet)
