"""Metrics of a real pool: on stdout, in a file, over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from embedpool import Client, Pool
from tests.gateway import gateway
from tests.process.test_serve import embedpool
from tests.support import COMMAND, router_of, serving, wait_until, workers_of

Numbers = dict[tuple[str, str], float]


def _numbers(text: str) -> Numbers:
    """By name and labels, in one string as `a=b,c=d`."""
    return {
        (sample.name, ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_text_tells_what_clients_were_answered() -> None:
    with serving(model="minilm") as server, Client(server.endpoint) as client:
        client.embed(["one", "two", "two"])
        client.embed([f"text number {i}" for i in range(40)])
        done = embedpool("status", "--prometheus", "--endpoint", server.endpoint)
        status = json.loads(client.status())
        pids = (server.pid, router_of(server.pid), *workers_of(server.pid))
        assert {int(status["pool"]["pid"]), status["router"]["pid"], *(w["pid"] for w in status["workers"])} == set(pids)
    assert (done.returncode, done.stderr) == (0, "")
    found, model = _numbers(done.stdout), status["model"]["name"]
    assert found["embedpool_up", ""] == 1
    for name, rows in (("interactive", 3), ("bulk", 40)):
        assert found["embedpool_requests_total", f"class={name},model={model},outcome=answered"] == 1
        assert found["embedpool_rows_total", f"class={name},model={model}"] == rows
        assert found["embedpool_request_seconds_count", f"class={name},model={model},stage=total"] == 1
        stages = [found["embedpool_request_seconds_sum", f"class={name},model={model},stage={s}"] for s in ("run", "total")]
        assert min(stages) > 0
    assert found["embedpool_rows_alike_total", ""] == 1
    assert found["embedpool_run_rows_sum", ""] == 42
    assert 0 < found["embedpool_run_tokens_total", ""] <= found["embedpool_run_padded_tokens_sum", ""]
    assert sum(value for (name, _), value in found.items() if name == "embedpool_worker_busy_seconds_total") > 0
    for process in (
        "process=supervisor,worker=",
        "process=router,worker=",
        "process=worker,worker=0",
        "process=worker,worker=1",
    ):
        resident, shared = (found[f"embedpool_process_{kind}_bytes", process] for kind in ("resident", "proportional"))
        assert 1e6 < shared <= resident


def test_a_worker_that_is_at_work_says_for_how_long_and_counts_as_busy() -> None:
    with serving(workers="1") as server, Client(server.endpoint) as client, ThreadPoolExecutor() as threads:
        [worker] = workers_of(server.pid)
        client.embed(["it is ready"])
        os.kill(worker, signal.SIGSTOP)
        try:
            pending = threads.submit(client.embed, ["one", "two"])
            with Client(server.endpoint) as other:
                wait_until(lambda: _running(other) is not None, 5.0, "the job to be given")
                wait_until(lambda: _running(other)["ms"] >= 20.0, 5.0, "it to be told how long it runs")
                [found] = json.loads(other.status())["workers"]
        finally:
            os.kill(worker, signal.SIGCONT)
        pending.result(10)
        assert (found["running"]["rows"], found["running"]["interactive"]) == (2, True)
        assert found["busy_s"] >= found["running"]["ms"] / 1e3 - 0.001 >= 0.019
        assert _running(client) is None


def _running(client: Client) -> Any:
    return json.loads(client.status())["workers"][0]["running"]


def test_a_textfile_is_renewed_until_the_command_is_stopped_and_tells_of_a_pool_that_went(tmp_path: Path) -> None:
    path = tmp_path / "embedpool.prom"
    with serving() as server:
        arguments = ("status", "--textfile", str(path), "--every", "0.1", "--endpoint", server.endpoint)
        # Where the tests run in the background of a shell, SIGINT is ignored, and children inherit that.
        writer = subprocess.Popen([*COMMAND, *arguments], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        try:
            wait_until(lambda: path.exists() and "embedpool_up 1.0" in path.read_text(), 10.0, "the file")
            first = path.stat().st_ino
            wait_until(lambda: path.stat().st_ino != first, 5.0, "another file in its place")
            assert server.stop() == 0
            wait_until(lambda: path.read_text().split("\n")[2] == "embedpool_up 0.0", 10.0, "the pool's end to be told")
        finally:
            writer.send_signal(signal.SIGINT)
            assert writer.wait(10) == 130
    assert [each.name for each in tmp_path.iterdir()] == ["embedpool.prom"]


def test_without_a_pool_the_text_says_so_and_the_command_fails(tmp_path: Path) -> None:
    done = embedpool("status", "--prometheus", "--endpoint", f"ipc://{tmp_path}/none.sock")
    assert done.returncode == 1
    assert _numbers(done.stdout) == {("embedpool_up", ""): 0.0}


def test_mistakes_with_metrics_are_one_sentence(tmp_path: Path) -> None:
    missing = str(tmp_path / "no" / "such.prom")
    for arguments in (["--prometheus", "--json"], ["--every", "5"], ["--prometheus", "--every", "0"], ["--textfile", missing]):
        done = embedpool("status", *arguments, "--endpoint", f"ipc://{tmp_path}/none.sock")
        assert done.returncode == 2
        assert done.stderr.startswith("embedpool: ")
        assert len(done.stderr.splitlines()) == 1


def test_a_gateway_tells_its_own_numbers_and_the_same_of_the_pool() -> None:
    with Pool("echo", workers=1) as pool, gateway(pool.endpoint) as http:
        vectors = np.array(http.post("/embed", {"inputs": ["a", "b"]}).json())
        assert vectors.shape == (2, 384)
        found = _numbers(http.get("/metrics").text)
        own = _numbers(embedpool("status", "--prometheus", "--endpoint", pool.endpoint).stdout)
    assert found["te_request_count", "method=batch"] == found["te_request_success", "method=batch"] == 1
    assert found["te_embed_success", ""] == 2
    assert found["te_batch_next_size_sum", ""] == found["embedpool_run_rows_sum", ""] == 2
    assert found["embedpool_gateway_deliver_seconds_count", ""] == 1
    assert 0 < found["embedpool_gateway_deliver_seconds_sum", ""] < found["te_request_duration_sum", ""]
    shared = {key for key in own if not key[0].startswith(("te_", "embedpool_gateway_"))}
    assert shared <= found.keys()
