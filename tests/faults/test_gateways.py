"""`serve --http`: gateways as parts of a pool, which are killed, stopped with it, and replaced at a reload."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from embedpool import Client
from tests.support import COMMAND, Server, alive, children, kill, launch, part, router_of, serving, wait_until, workers_of

LISTEN = "127.0.0.1:0"


def url_of(server: Server) -> str:
    (found,) = [word.rstrip(",") for word in server.ready_line.split() if word.startswith("http://")]
    return found


def gateways_of(server: Server) -> list[int]:
    return part(server.pid, "embedpool-http")


def embed(url: str, texts: list[str], **more: object) -> httpx.Response:
    return httpx.post(f"{url}/embed", json={"inputs": texts}, timeout=10, **more)  # type: ignore[arg-type]


def test_the_ready_line_names_the_address_and_requests_are_answered() -> None:
    with serving("--http", LISTEN) as server:
        answer = embed(url_of(server), ["a", "b"])
        assert (answer.status_code, len(answer.json()), len(answer.json()[0])) == (200, 2, 384)
        assert len(gateways_of(server)) == 1


def test_several_gateways_share_the_address() -> None:
    with serving("--http", LISTEN, "--http-workers", "3") as server:
        assert len(gateways_of(server)) == 3
        for i in range(30):  # a connection each: the kernel spreads them
            assert embed(url_of(server), [f"text {i}"]).status_code == 200


def test_a_gateway_that_is_killed_is_replaced_and_whoever_connects_meanwhile_waits() -> None:
    with serving("--http", LISTEN) as server:
        url = url_of(server)
        for _ in range(3):
            (victim,) = gateways_of(server)
            kill(victim)
            wait_until(lambda pid=victim: not alive(pid), 2.0)  # type: ignore[misc]
            assert embed(url, ["at once"]).status_code == 200, "nobody listened"
            assert victim not in gateways_of(server)


def test_router_and_workers_may_be_killed_behind_it() -> None:
    with serving("--http", LISTEN) as server:
        url = url_of(server)
        for victim in (router_of(server.pid), workers_of(server.pid)[0]):
            kill(victim)
            assert embed(url, ["goes on"]).status_code == 200


def test_a_killed_supervisor_takes_its_gateways_along() -> None:
    with serving("--http", LISTEN, "--http-workers", "2") as server:
        parts = children(server.pid)
        assert len(parts) == 6
        kill(server.pid)
        server.process.wait(5)
        wait_until(lambda: not any(map(alive, parts)), 3.0)
        with pytest.raises(httpx.ConnectError):
            embed(url_of(server), ["x"])


def test_a_stop_answers_what_was_accepted_and_refuses_connections_after_it() -> None:
    with serving("--http", LISTEN) as server, Client(server.endpoint) as client:
        url = url_of(server)
        client.embed(["warm"])
        statuses: list[int] = []

        def ask() -> None:
            with httpx.Client(timeout=10) as http:
                for i in range(1000):
                    try:
                        statuses.append(http.post(f"{url}/embed", json={"inputs": [f"text {i}"] * 20}).status_code)
                    except httpx.TransportError:  # the connection was closed between two requests
                        return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        assert server.stop() == 0
        for thread in threads:
            thread.join(10)
        assert statuses and set(statuses) <= {200, 503}
        assert statuses.count(200) > 0


def test_a_reload_with_other_keys_has_the_gateway_take_them_up(tmp_path: Path) -> None:
    keys, config = tmp_path / "keys", tmp_path / "pool.toml"
    keys.write_text("secret\n")
    text = f'model = "echo"\nhttp = "{LISTEN}"\n'
    config.write_text(text)
    with serving("--config", str(config), model="") as server:
        url = url_of(server)
        assert embed(url, ["x"]).status_code == 200
        config.write_text(text + f'http_api_key_file = "{keys}"\n')
        done = subprocess.run([*COMMAND, "reload", "--endpoint", server.endpoint], capture_output=True, timeout=30, check=False)
        assert done.returncode == 0
        wait_until(lambda: embed(url, ["x"]).status_code == 401, 5.0, "the key to be asked for")
        assert embed(url, ["x"], headers={"authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--http", "nowhere"], "HOST:PORT"),
        (["--http", "taken"], "Address already in use"),
        (["--http", LISTEN, "--http-compat", "tei-0.1"], "tei-1.8"),
        (["--http", LISTEN, "--http-api-key-file", "/nowhere"], "cannot be read"),
    ],
    ids=["address", "taken", "compat", "keys"],
)
def test_a_mistake_is_one_sentence_before_anything_is_started(flags: list[str], reason: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = [f"127.0.0.1:{taken.getsockname()[1]}" if flag == "taken" else flag for flag in flags]
        process = launch(["serve", "--model", "echo", "--runtime-dir", str(tmp_path / "run"), *flags])
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 2
    assert reason in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
