"""A worker of the pool's own that also says when each job began and ended: delivery.py tells computing from delivering by it.

Run as the supervisor's worker program (supervise.supervisor.Programs). Appends three float64 per job to the file that
EMBEDPOOL_BENCH_JOBS names: the instants of time.monotonic at which the job was begun and its last row was written, and the
seconds between them that the encoder took, tokens and runs.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from embedpool.models.echo import EchoEncoder
from embedpool.models.encoding import Cut, Vectors
from embedpool.models.spec import ModelSpec
from embedpool.worker import job
from embedpool.worker import main as worker

JOB = struct.Struct("<3d")


class TimedEncoder(EchoEncoder):
    spent_s = 0.0  # of all: a worker has one

    def tokens(self, texts: Sequence[str], cut: Cut) -> list[list[int]]:
        began = time.monotonic()
        try:
            return super().tokens(texts, cut)
        finally:
            TimedEncoder.spent_s += time.monotonic() - began

    def run(self, rows: Sequence[Sequence[int]], width: int) -> Vectors:
        began = time.monotonic()
        try:
            return super().run(rows, width)
        finally:
            TimedEncoder.spent_s += time.monotonic() - began


def main() -> int:
    jobs = os.open(os.environ["EMBEDPOOL_BENCH_JOBS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    run_job = job.run_job

    def timed(*asked: Any) -> Any:
        spent_s, began_at = TimedEncoder.spent_s, time.monotonic()
        outcome = run_job(*asked)
        os.write(jobs, JOB.pack(began_at, time.monotonic(), TimedEncoder.spent_s - spent_s))
        return outcome

    def load(spec: ModelSpec) -> worker.MakeEncoder:
        return lambda _: TimedEncoder(spec)

    vars(worker)["run_job"] = timed  # where its loop looks it up
    return worker.main(sys.argv[1:], load)


if __name__ == "__main__":
    sys.exit(main())
