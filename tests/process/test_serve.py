"""`embedpool serve` and the commands around it, as an administrator runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from embedpool import Client, errors
from tests.support import COMMAND, launch, read_line, same, serving, wait_until, workers_of


def embedpool(*arguments: str, text: str = "", environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environ or {})},
    )


def test_one_ready_line_says_what_is_served_where_and_by_whom() -> None:
    with serving("--model", "echo:16") as server:
        assert re.fullmatch(
            r"embedpool is ready after \d+\.\d s: echo:16 \(16 dimensions\) at ipc://\S+, 2 workers on cores [\d, +]+\n",
            server.ready_line,
        )
        with Client(server.endpoint) as client:
            assert client.embed(["answered at once"], timeout_s=1.0).shape == (1, 16)
        assert server.stop() == 0
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""
        assert not server.runtime_dir.exists()


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    with serving(model="minilm") as server, Client(server.endpoint) as client, Client(server.endpoint) as late:
        late.embed(["connected"])
        texts = [f"sentence number {i} about nothing in particular, of a usual length" for i in range(300)]
        found: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: found.append(client.embed(texts)))
        thread.start()
        wait_until(lambda: json.loads(late.status())["sessions"]["requests_open"] == 1, 10.0, "the request to arrive")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: _refused(late), 5.0, "new work to be refused")
        thread.join(30)
        assert found[0].shape == (300, 384)
        assert server.process.wait(10) == 0


def _refused(client: Client) -> bool:
    try:
        client.embed(["new work"])
    except errors.Draining as error:
        return error.retryable
    return False


def test_a_second_pool_on_the_same_directory_names_the_first() -> None:
    with serving() as server:
        second = embedpool("serve", "--model", "echo", "--runtime-dir", str(server.runtime_dir))
        assert second.returncode == 2
        assert f"process {server.pid}" in second.stderr
        assert second.stderr.count("\n") == 1
        with Client(server.endpoint) as client:
            assert same(client.embed(["still here"]), ["still here"])


def test_an_endpoint_that_another_pool_serves_is_not_stolen(tmp_path: Path) -> None:
    with serving() as server:
        second = embedpool("serve", "--model", "echo", "--runtime-dir", str(tmp_path / "other"), "--endpoint", server.endpoint)
        assert second.returncode == 2
        assert "already listens" in second.stderr
        with Client(server.endpoint) as client:
            assert same(client.embed(["still here"]), ["still here"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_starting_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    place = tmp_path / "run"
    process = launch(["serve", "--model", "minilm", "--runtime-dir", str(place)])
    while not (place / "lock").exists():  # without a pause: the signal should come while the directory is being made
        assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert not place.exists()


# ── a model that cannot be served ────────────────────────────────────────────────────────────────────────────────────


def _broken(directory: Path, how: str) -> Path:
    directory.mkdir()
    if how != "no onnx":
        (directory / "model.onnx").write_bytes(b"not a graph")
    if how != "no tokenizer":
        (directory / "tokenizer.json").write_text("{}" if how == "bad tokenizer" else _tokenizer())
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    return directory


def _tokenizer() -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece

    return str(Tokenizer(WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str())


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("no onnx", "model.onnx"),
        ("no tokenizer", "tokenizer.json"),
        ("bad onnx", "model.onnx"),
        ("no directory", "no directory.*all-MiniLM-L6-v2"),
    ],
)
def test_a_broken_model_is_one_sentence_and_exit_2_before_any_worker(how: str, names: str, tmp_path: Path) -> None:
    model = tmp_path / "missing" if how == "no directory" else _broken(tmp_path / "model", how)
    done = embedpool("serve", "--model", str(model), "--runtime-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(names, done.stderr), done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("embedpool: preparing ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_hub_model_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = embedpool("serve", "--model", "owner/name", "--runtime-dir", str(tmp_path / "run"), environ=offline)
    assert done.returncode == 2
    assert "--model minilm" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--workers", "many"), "workers must be a whole number"),
        (("--endpoint", "tcp://0.0.0.0:1"), "loopback"),
        (("--config", "/nonexistent.toml"), "/nonexistent.toml"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_2(arguments: tuple[str, ...], names: str) -> None:
    done = embedpool("serve", *arguments)
    assert done.returncode == 2
    assert names in done.stderr
    assert done.stderr.count("\n") == 1


def test_settings_come_from_file_environment_and_flag(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text('model = "echo:8"\nworkers = 1\nslice_ms = 7.5\n')
    environ = {"EMBEDPOOL_CONFIG": str(file), "EMBEDPOOL_RUNTIME_DIR": str(tmp_path / "run"), "EMBEDPOOL_MODEL": "echo:9"}
    process = launch(["serve", "--workers", "2"], environ)
    try:
        assert "echo:9 (9 dimensions)" in read_line(process, 30.0)
        status = embedpool("status", "--json", environ=environ)
        assert len(json.loads(status.stdout)["workers"]) == 2
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == 0


# ── the other commands ───────────────────────────────────────────────────────────────────────────────────────────────


def test_embed_writes_one_row_per_line_as_json_lines_and_as_npy(tmp_path: Path) -> None:
    lines = ["first", "", "third ü", "fourth"]
    (tmp_path / "in.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with serving() as server:
        found = embedpool("embed", "--endpoint", server.endpoint, text="\n".join(lines) + "\n")
        assert found.returncode == 0, found.stderr
        rows = [json.loads(line) for line in found.stdout.splitlines()]
        assert [row["text"] for row in rows] == lines
        assert same(np.array([row["embedding"] for row in rows], np.float32), lines)
        out = tmp_path / "out.npy"
        environ = {"EMBEDPOOL_ENDPOINT": server.endpoint}
        done = embedpool("embed", str(tmp_path / "in.txt"), "-o", str(out), "--dim", "32", environ=environ)
        assert done.returncode == 0, done.stderr
        assert np.load(out).shape == (4, 32)
        assert embedpool("embed", "/nonexistent", environ=environ).returncode == 2
        assert embedpool("embed", "--dim", "9999", text="x\n", environ=environ).returncode == 2


def test_status_shows_model_workers_queue_and_sessions() -> None:
    with serving() as server, Client(server.endpoint) as client:
        client.embed(["x", "y"])
        found = json.loads(embedpool("status", "--json", "--endpoint", server.endpoint).stdout)
        assert found["state"] == "serving"
        assert found["model"]["fingerprint"] == "echo-384-1"
        assert sorted(w["pid"] for w in found["workers"]) == workers_of(server.pid)
        assert all({"pid", "cores", "state", "jobs_done", "restarts"} <= set(w) for w in found["workers"])
        assert sum(w["rows_done"] for w in found["workers"]) == found["counters"]["rows"] == 2
        assert found["sessions"]["segment_bytes"] == 16 << 20
        shown = embedpool("status", "--endpoint", server.endpoint).stdout
        assert "echo:384" in shown
        assert all(str(w["pid"]) in shown for w in found["workers"])


def test_status_without_a_pool_says_so(tmp_path: Path) -> None:
    done = embedpool("status", environ={"EMBEDPOOL_RUNTIME_DIR": str(tmp_path)})
    assert done.returncode == 2
    assert "embedpool serve" in done.stderr


def test_the_demo_answers_its_questions_and_works_when_piped() -> None:
    done = embedpool("demo", "--texts", "300", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stdout
    assert done.stdout.count("?") >= 2
    for row in ("texts/s", "tokens/s", "p50", "p95", "cores 0, 1", "MB"):
        assert row in done.stdout, row
