"""What becomes of requests whose trace is recorded, noted while it happens. Pure; called by the core, for those requests alone.

Recorded is what its client records; and what comes without a trace's context, where traces may begin here. A client that says
that it does not record its trace costs a look at its flags, and nothing more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from embedpool.protocol import Done, Embed, Refused, Vectors
from embedpool.traces.context import is_sampled, is_valid, passed_on
from embedpool.traces.records import ANSWERED, DROPPED, MOST_JOBS, MOST_MESSAGE_CHARS, Record, Work


@dataclass(slots=True, eq=False)
class Trace:
    """Of one request that has no answer yet; its record is put into `out` when it has."""

    ask: Embed
    model: str
    interactive: bool
    arrived_at: float
    out: list[Record]
    jobs: int = 0
    begun_at: float = math.inf  # the first of its jobs
    computed_at: float = 0.0  # when the last of its jobs ended
    works: list[Work] = field(default_factory=list)

    def computed(self, worker: int, rows: int, tokens: int, done: Done, known: tuple[float, float]) -> None:
        """A job has ended that had rows of the request. `known` are the moments at which the router saw it begin and end: of a
        worker that does not say."""
        self.jobs += 1
        began_at, ended_at = (done.began_s, done.ended_s) if done.ended_s else known
        self.begun_at, self.computed_at = min(self.begun_at, began_at), max(self.computed_at, ended_at)
        if self.jobs > MOST_JOBS:
            return
        tokenized_at = min(began_at + done.tokenize_ms / 1e3, ended_at)
        run_ms = max(0.0, done.run_ms - done.tokenize_ms)
        self.works.append(Work(worker, rows, tokens, began_at, tokenized_at, ended_at, run_ms))

    def ended(self, answer: Vectors | Refused | None, now: float) -> None:
        """None: its session ended first."""
        ask = self.ask
        dim, tokens, outcome, message = 0, 0, DROPPED, "the client's session ended"
        if isinstance(answer, Vectors):
            dim, tokens, outcome, message = answer.dim, answer.tokens, ANSWERED, ""
        elif answer is not None:
            outcome, message = answer.code, answer.message[:MOST_MESSAGE_CHARS]
        sent_at = ask.sent_s if ask.sent_s < now else 0.0
        self.out.append(
            Record(
                *passed_on(ask.traceparent, ask.tracestate),
                ask.model or self.model,
                self.interactive,
                len(ask.texts),
                dim,
                tokens,
                min(sent_at, self.arrived_at),
                self.arrived_at,
                min(self.begun_at, now),
                min(self.computed_at, now),
                now,
                outcome,
                message,
                self.jobs,
                tuple(self.works),
            )
        )


@dataclass(slots=True, eq=False)
class Traces:
    """Of one router. `roots`: what comes without a context is recorded too. `ended` is emptied by traces.outlet."""

    roots: bool
    ended: list[Record] = field(default_factory=list)

    def begun(self, ask: Embed, model: str, interactive: bool, now: float) -> Trace | None:
        """None where nobody records the request."""
        wanted = is_sampled(ask.traceparent) if ask.traceparent and is_valid(ask.traceparent) else self.roots
        return Trace(ask, model, interactive, now, self.ended) if wanted else None
