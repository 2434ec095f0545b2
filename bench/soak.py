"""A pool of MiniLM under mixed load for MINUTES, with clients that come, go, stall and die, workers that are killed, and
reloads: what is left behind by them, and what queries notice.

latency: from the instant at which a query is due (a Poisson process of QUERIES per second) to its vector's being in the hands
of AsyncClient.embed_query's caller; memory (PSS, and the part of it that is anonymous), file descriptors, sessions and
segments: looked at every second.

Every minute has 45 seconds of bulk bursts, visits (soak_clients.py), kills and, every second minute, a reload (SIGHUP), and
then 15 in which, after one last burst, queries alone go on. A line's slope is that of its medians over the last 5 seconds of
each minute, when all that came has gone again and every worker has been replaced; the first WARM_UP minutes do not count.
Router and supervisor live as long as the pool. Workers do not: kills and reloads make their memory a saw-tooth, so that of all
processes together is compared too, but says less. Sessions, segments and descriptors have to be what they were, to the last
one. Every vector is compared, byte by byte, with the one that another, undisturbed pool gave. Ends with status 1 if a line is
not flat, an answer wrong or missing, or anything of the pool is left when it has ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import chaos
import soak_clients
import soak_plan
from common import in_ms, loads, percentile, sleep_until, wait_for_workers, write
from embedpool import Pool
from embedpool.bench.processes import ROLES, roles_below
from embedpool.memory import rollup
from soak_lines import medians, slope_of, verdict

ALIVE = ("supervisor", "router")  # as long as the pool
MB_PER_HOUR, COUNT_PER_HOUR = 1.0, 6.0  # the latter: less than one for each reload, of which there are 30 in an hour
PICTURE_S, WINDOW_S = 5.0, 20.0  # samples and latencies are kept as medians and percentiles of so many seconds
ENDED_WITHIN_S = 10.0
QUERIES_END_S = 1.0
IDLE_S = 8.0  # a session without a segment is forgotten after: before the quiet moments, if its client left without a word


# ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Sample:
    """One look: every line's value by its name; `pids` are the pool's processes."""

    at_s: float
    values: dict[str, float]
    pids: tuple[int, ...]


def sample(pool: Pool, directory: Path, at_s: float) -> Sample:
    roles = roles_below(pool.pid)
    values: dict[str, float] = {}
    for role in ROLES:
        pids = [pid for pid, its in roles.items() if its == role]
        if role in ("gateways", "other") or not pids:
            continue
        sizes = [rollup(pid) for pid in pids]
        values[f"{role}_mb"] = sum(size.get("Pss", 0) for size in sizes) / 1e6
        values[f"{role}_anonymous_mb"] = sum(size.get("Pss_Anon", 0) for size in sizes) / 1e6
        values[f"{role}_descriptors"] = sum(descriptors(pid) for pid in pids)
        values[f"{role}_processes"] = len(pids)
    values["pool_mb"] = sum(values.get(f"{role}_mb", 0.0) for role in ROLES)
    values["pool_processes"] = len(roles)
    segments = list((directory / "segments").iterdir())
    values["segments"], values["segments_mb"] = len(segments), sum(map(allocated, segments)) / 1e6
    values["files"] = len(list(directory.iterdir()))
    with suppress(Exception):  # a router that answers late is seen in the latencies
        status = json.loads(pool.status(timeout_s=1))
        values["sessions"] = status["sessions"]["open"]
        values["requests_open"] = status["sessions"]["requests_open"]
        values["workers_ready"] = sum(worker["state"] in ("idle", "busy") for worker in status["workers"])
    values["load_average"] = os.getloadavg()[0]
    return Sample(at_s, values, tuple(roles))


def descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:  # removed just now
        return 0


# ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Events:
    kills_s: list[float]
    reloads_s: list[float]


def run(pool: Pool, given: argparse.Namespace, known_path: str, samples: list[Sample]) -> dict[str, Any]:
    """The load with all faults; samples on the way, what the loads saw at the end."""
    seconds, directory = given.minutes * 60, Path(pool.endpoint.removeprefix("ipc://")).parent
    order = {"endpoint": pool.endpoint, "known": known_path, "seconds": seconds, "seed": given.seed}
    asked = [order | {"role": "queries", "per_s": given.queries, "seconds": seconds - QUERIES_END_S}]
    others = [order | {"role": "bulk"}, order | {"role": "crowd", "per_s": given.visits}]
    events = Events(soak_plan.kills(seconds, given.seed), soak_plan.reloads(seconds))
    with loads(chaos.__file__, asked) as (queries,), loads(soak_clients.__file__, others) as (bulk, crowd):
        begin_at = time.monotonic() + 0.1
        for load in (queries, bulk, crowd):
            load.begin(begin_at)
        watch(pool, directory, begin_at, seconds, events, random.Random(given.seed), samples)
        found = {"queries": queries.saw(60), "bulk": bulk.saw(60), "crowd": crowd.saw(120)}
    return found | {"events": events}


def watch(
    pool: Pool, directory: Path, begin_at: float, seconds: float, events: Events, rng: random.Random, samples: list[Sample]
) -> None:
    """Samples every second, kills and reloads when they are due, until the time is over."""
    faults = sorted([(at, "kill") for at in events.kills_s] + [(at, "reload") for at in events.reloads_s])
    looks = [(float(second), "look") for second in range(1, int(seconds))]
    for at_s, what in sorted(faults + looks):
        sleep_until(begin_at + at_s)
        if what == "kill":
            chaos.strike(pool, signal.SIGKILL, rng)
        elif what == "reload":
            os.kill(pool.pid, signal.SIGHUP)
        else:
            samples.append(sample(pool, directory, time.monotonic() - begin_at))


def left_behind(pids: set[int], directory: Path) -> list[str]:
    """Processes that still are, and what is in the pool's directory, ENDED_WITHIN_S after its end."""
    end_at = time.monotonic() + ENDED_WITHIN_S
    while (left := [f"process {pid}" for pid in pids if of_pool(pid)]) and time.monotonic() < end_at:
        time.sleep(0.1)
    return [*left, *(str(path.name) for path in directory.glob("**/*")), *([directory.name] if directory.exists() else [])]


def of_pool(pid: int) -> bool:
    try:
        return b"embedpool" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


# ── the whole in numbers ─────────────────────────────────────────────────────────────────────────────────────────────


def lines(samples: list[Sample], warm_up_s: float) -> dict[str, Any]:
    """Slopes and verdicts. `required`: the run fails if it is not flat."""
    limits = [(f"{role}_{what}", MB_PER_HOUR, True) for role in ALIVE for what in ("mb", "anonymous_mb")]
    limits += [(name, MB_PER_HOUR, False) for name in ("forkserver_mb", "workers_mb", "pool_mb")]
    limits += [(f"{role}_descriptors", COUNT_PER_HOUR, True) for role in (*ALIVE, "forkserver", "workers")]
    limits += [(name, COUNT_PER_HOUR, True) for name in ("segments", "sessions", "files")]
    limits += [("segments_mb", MB_PER_HOUR, True), ("pool_processes", COUNT_PER_HOUR, True)]
    found = {}
    for name, most, required in limits:
        points = quiet(samples, name, warm_up_s)
        slope = slope_of([at for at, _ in points], [value for _, value in points])
        found[name] = {
            "per_hour": round(slope.per_hour, 3) if slope else None,
            "interval": [round(slope.low, 3), round(slope.high, 3)] if slope else None,
            "resolves": round(slope.resolves, 3) if slope else None,
            "points": len(points),
            "first_and_last": [round(points[0][1], 3), round(points[-1][1], 3)] if points else None,
            "most_per_hour": most,
            "required": required,
            "verdict": verdict(slope, most),
        }
    return found


def quiet(samples: list[Sample], name: str, warm_up_s: float) -> list[tuple[float, float]]:
    """One point per minute: the line's median in its quiet moments."""
    chosen = [one for one in samples if soak_plan.is_quiet(one.at_s) and one.at_s >= warm_up_s and name in one.values]
    return medians([one.at_s for one in chosen], [one.values[name] for one in chosen], soak_plan.MINUTE_S)


def columns(samples: list[Sample]) -> dict[str, str]:
    """Medians of PICTURE_S seconds of each line, for the picture; a string each, or the file would be thousands of lines."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for one in samples for name in one.values):
        with_it = [one for one in samples if name in one.values]
        points = medians([one.at_s for one in with_it], [one.values[name] for one in with_it], PICTURE_S)
        found[name] = " ".join(f"{at:.0f}:{value:.6g}" for at, value in points)
    return found


def latency(queries: dict[str, np.ndarray], seconds: float) -> dict[str, Any]:
    """Percentiles of each WINDOW_S, and of all."""
    windows = [
        in_ms(queries["ms"][(queries["due_s"] >= at) & (queries["due_s"] < at + WINDOW_S)])
        for at in np.arange(0.0, seconds - WINDOW_S / 2, WINDOW_S)
    ]
    by_window = {name: " ".join(f"{one[name]:g}" for one in windows) for name in ("p50", "p95", "p99", "max")}
    third = len(windows) // 3 or 1
    p95 = [one["p95"] for one in windows]
    return {
        "all": in_ms(queries["ms"]),
        "window_s": WINDOW_S,
        "of_each_window": by_window,
        "p95_first_and_last_third": [round(percentile(part, 50), 2) for part in (p95[:third], p95[-third:])],
        "lag_of_the_load_itself": in_ms(queries["lag_ms"]),
    }


def results(
    given: argparse.Namespace, samples: list[Sample], saw: dict[str, Any], left: list[str], counters: dict[str, Any]
) -> dict[str, Any]:
    seconds, queries, bulk = given.minutes * 60, saw["queries"], saw["bulk"]
    asked = Counter(queries["outcome"].tolist())
    bursts = Counter(bulk["outcome"].tolist())
    visits = json.loads(str(saw["crowd"]["outcomes"]))
    failed = unexpected(asked, bursts, visits, int(bulk["wrong"].sum()))
    found = lines(samples, given.warm_up * 60)
    events: Events = saw["events"]
    return {
        "model": chaos.MODEL,
        "workers": given.workers,
        "cores": len(os.sched_getaffinity(0)),
        "minutes": given.minutes,
        "warm_up_minutes": given.warm_up,
        "seed": given.seed,
        "queries_per_s": given.queries,
        "visits_per_s": given.visits,
        "kills_at_s": " ".join(f"{at:.1f}" for at in events.kills_s),
        "reloads_at_s": " ".join(f"{at:.0f}" for at in events.reloads_s),
        "queries": asked,
        "bursts": bursts,
        "burst_ms": in_ms(bulk["ms"]),
        "visits_planned": int(saw["crowd"]["planned"]),
        "visits": dict(sorted(visits.items())),
        "failed": failed,
        "counters": counters,
        "latency_ms": latency(queries, seconds - QUERIES_END_S),
        "load_average": [round(f([one.values["load_average"] for one in samples]), 2) for f in (min, np.median, max)],
        "lines": found,
        "left_behind": left,
        "samples": columns(samples),
        "goals": {
            "every required line is flat": all(one["verdict"] == "flat" for one in found.values() if one["required"]),
            "no line grows": all(one["verdict"] != "grows" for one in found.values()),
            "no answer is wrong, missing or an unexpected refusal": not failed,
            "nothing is left": not left,
        },
    }


def unexpected(asked: Counter[str], bursts: Counter[str], visits: dict[str, int], wrong_rows: int) -> dict[str, int]:
    """What should not have happened, by its name."""
    found = {f"query: {what}": n for what, n in asked.items() if what != "done"}
    found |= {f"burst: {what}": n for what, n in bursts.items() if what != "done"}
    found |= {what: n for what, n in visits.items() if not expected(*what.split(": ", 1))}
    return found | ({"burst: wrong rows": wrong_rows} if wrong_rows else {})


def expected(kind: str, outcome: str) -> bool:
    return outcome == ("killed" if "dies" in kind else "done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=5, help="minutes at the beginning that no slope counts")
    parser.add_argument("--queries", type=float, default=10.0, help="per second")
    parser.add_argument("--visits", type=float, default=2.0, help="clients that come, per second of the busy part of a minute")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="soak", help="of the result file")
    given = parser.parse_args()
    samples: list[Sample] = []
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        chaos.known_vectors(file.name)
        with Pool(chaos.MODEL, workers=given.workers, session_idle_s=IDLE_S) as pool:
            wait_for_workers(pool, given.workers)
            directory = Path(pool.endpoint.removeprefix("ipc://")).parent
            saw = run(pool, given, file.name, samples)
            counters = json.loads(pool.status(timeout_s=30))["counters"]
    left = left_behind({pid for one in samples for pid in one.pids}, directory)
    found = results(given, samples, saw, left, counters)
    write(given.name, " ".join((__doc__ or "").split()), found)
    missed = [goal for goal, met in found["goals"].items() if not met]
    sys.exit(f"not met: {'; '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
