"""Everything at once: parts killed, stopped and reloaded in any order under load, and every answer is right.

EMBEDPOOL_STORM_S sets how long a storm lasts; the order of faults follows from the seed, what they hit from the machine.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from embedpool import Client
from tests.faults.test_replacing import Asking, configured, of_either, reload
from tests.faults.test_table import ready_workers, state
from tests.support import Server, children, part, wait_until

SECONDS = float(os.environ.get("EMBEDPOOL_STORM_S", "10"))
PARTS = ("embedpool-w", "embedpool-w", "embedpool-w", "embedpool.router", "embedpool-fork", "embedpool-http")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)


def settings(model: str = "echo", workers: int = 2) -> str:
    return f'model = "{model}"\nhttp = "127.0.0.1:0"\nhang_s = 1\nworkers = {workers}\n'


def strike(server: Server, chance: random.Random) -> str:
    """A random signal to a random part. A router is not stopped here: it takes five seconds to be found out."""
    name = chance.choice(PARTS)
    number = signal.SIGKILL if name == "embedpool.router" else chance.choice(SIGNALS)
    for pid in part(server.pid, name)[:: chance.choice((1, -1))][:1]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            return f"{number.name} to {name} {pid}"
    return f"no {name}"


def change(server: Server, file: Path, chance: random.Random) -> str:
    model, workers, timeout_s = chance.choice(("echo", "echo:128")), chance.choice((1, 2, 3)), chance.choice((5, 6))
    file.write_text(settings(model, workers) + f"http_timeout_s = {timeout_s}\n")
    os.kill(server.pid, signal.SIGHUP)
    return f"reload of {model} with {workers} workers"


@pytest.mark.parametrize("seed", [1, 2])
def test_no_order_of_faults_and_reloads_costs_an_answer_or_leaves_anything(seed: int, tmp_path: Path) -> None:
    chance, said = random.Random(seed), list[str]()
    with configured(tmp_path, settings().removesuffix("workers = 2\n")) as (server, file):
        with Client(server.endpoint) as client:
            client.embed(["warm"], timeout_s=10)
        end_at = time.monotonic() + SECONDS
        with Asking(server.endpoint, of_either) as asking:
            while time.monotonic() < end_at and not asking.wrong:
                time.sleep(chance.choice((0.02, 0.1, 0.3, 0.8)))
                said.append(change(server, file, chance) if chance.random() < 0.25 else strike(server, chance))
            assert not asking.wrong, "\n".join([*said[-20:], str(asking.wrong)])
        file.write_text(settings())
        with Client(server.endpoint) as client:
            wait_until(lambda: state(client)["reload"]["state"] != "running", 30.0, "the last reload to end")  # type: ignore[index]
            done = reload(server.endpoint)
            assert done.returncode == 0, done
            wait_until(lambda: ready_workers(client) == 2, 15.0)
            wait_until(lambda: len(children(server.pid)) == 5, 10.0, "router, forkserver, two workers, a gateway; nobody else")
            assert state(client)["state"] == "serving"
