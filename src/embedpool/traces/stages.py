"""A record as stages with moments and attributes: what the spans will say, without OpenTelemetry. Pure.

receive   from the client's sending, if it says when, until the router has read the request
queue     from there until a worker has taken up its first text
tokenize  per job that had texts of the request: texts to tokens, all texts of that job
run       per job: the model, until the last row was written, with what overtook the job
deliver   from the last of these until the router answers

Where a request is one job, these follow each other without a gap and add up to the whole. Names are those of OpenTelemetry's
conventions where there are any (gen_ai.*, error.type: semantic conventions 1.37), else begin with `embedpool.`.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedpool.traces.records import ANSWERED, Record, Work

NAME = "embedpool.embed"  # of the span that holds the others
Attributes = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Stage:
    """Moments are CLOCK_MONOTONIC's, in seconds."""

    name: str
    began_s: float
    ended_s: float
    attributes: Attributes


def whole(record: Record) -> Stage:
    """The request itself, with what is known when it begins: samplers look at that."""
    attributes: Attributes = {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "embedpool",
        "gen_ai.request.model": record.model,
        "embedpool.class": "interactive" if record.interactive else "bulk",
        "embedpool.rows": record.rows,
    }
    return Stage(NAME, record.sent_s or record.arrived_s, record.ended_s, attributes)


def outcome(record: Record) -> Attributes:
    """What is known of the request when it has ended."""
    found: Attributes = {"embedpool.jobs": record.jobs}
    if record.outcome == ANSWERED:
        return found | {"gen_ai.usage.input_tokens": record.tokens, "gen_ai.embeddings.dimension.count": record.dim}
    return found | {"error.type": record.outcome}


def stages(record: Record) -> list[Stage]:
    """In the order of their beginnings, but for jobs that ran at once."""
    found = [Stage("receive", record.sent_s, record.arrived_s, {})] if record.sent_s else []
    if record.jobs or record.ended_s > record.arrived_s:  # else it was answered when it came
        found.append(Stage("queue", record.arrived_s, max(record.begun_s, record.arrived_s), {}))
    for work in record.works:
        found += _job(work)
    if record.jobs and record.outcome == ANSWERED:
        found.append(Stage("deliver", record.computed_s, record.ended_s, {}))
    return found


def _job(work: Work) -> list[Stage]:
    both: Attributes = {"embedpool.worker": work.worker, "embedpool.rows": work.rows}
    run: Attributes = {**both, "embedpool.tokens": work.tokens, "embedpool.run_ms": round(work.run_ms, 3)}
    return [
        Stage("tokenize", work.began_s, work.tokenized_s, both),
        Stage("run", work.tokenized_s, work.ended_s, run),
    ]
