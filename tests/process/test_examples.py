"""The clients in other languages give the Python client's vectors, byte for byte, and outlive the router as their pages claim.

What builds or runs them is not on every machine: where it is missing, these tests are skipped, and say what is.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedpool import Client
from tests.support import Server, kill, router_of, segments, serving, wait_until

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TEXTS = ["a text", "", "Grüße, 你好 🦜", "longer than the others, so that rows are computed in another order than asked for"]
SANITIZED = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
HEADERS = "#include <zmq.h>\n#include <msgpack.h>\n"


@dataclass(frozen=True, slots=True)
class Example:
    """A client's command line, and its option for raw rows."""

    command: tuple[str, ...]
    raw: str

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*self.command, *arguments], capture_output=True, timeout=30, check=False)

    def vectors(self, *arguments: str) -> bytes:
        done = self.run(self.raw, *arguments)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


@pytest.fixture(scope="session")
def c_client(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Built with gcc's checks of memory and of what C leaves undefined, where it has them."""
    for program in ("make", "cc", "pkg-config"):
        if shutil.which(program) is None:
            pytest.skip(f"the client in C is not built: no {program} here")
    found = subprocess.run(["cc", "-E", "-x", "c", "-"], input=HEADERS, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"the client in C is not built: {found.stderr.splitlines()[0]}")
    place = tmp_path_factory.mktemp("c")
    return Example((str(_made(place, SANITIZED) if _sanitizes(place) else _made(place, "-O2")),), "-r")


def _sanitizes(place: Path) -> bool:
    command = ["cc", *SANITIZED.split(), "-x", "c", "-", "-o", str(place / "probe")]
    return not subprocess.run(
        command, input="int main(void) { return 0; }", text=True, capture_output=True, check=False
    ).returncode


def _made(place: Path, flags: str) -> Path:
    command = ["make", "-C", str(EXAMPLES / "c"), f"BUILD={place}", f"CFLAGS={flags}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return place / "embed"


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Installed as its page says, outside of the source tree."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"the client in JavaScript is not run: no {program} here")
    place = tmp_path_factory.mktemp("node")
    for name in ("package.json", "embed.mjs"):
        shutil.copy(EXAMPLES / "node" / name, place)
    try:
        command = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
        failed = done.stderr.strip().splitlines()[0] if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = "npm install took more than 60 s"
    loads = ["node", "-e", "Promise.all([import('zeromq'), import('@msgpack/msgpack')])"]
    if not failed and subprocess.run(loads, cwd=place, capture_output=True, timeout=30, check=False).returncode:
        failed = "zeromq cannot be loaded"
    if failed:
        pytest.skip(f"the client in JavaScript is not run, its modules cannot be had: {failed}")
    return Example(("node", str(place / "embed.mjs")), "--raw")


@pytest.fixture(params=["c", "node"])
def example(request: pytest.FixtureRequest) -> Example:
    found: Example = request.getfixturevalue(f"{request.param}_client")
    return found


@pytest.mark.parametrize("model", ["echo", "minilm"])
def test_vectors_are_those_of_the_python_client_to_the_last_bit(example: Example, model: str) -> None:
    with serving(model=model) as server:
        assert example.vectors(server.endpoint, *TEXTS) == _expected(server, TEXTS)


def test_the_norm_and_the_first_values_of_each_vector_are_printed(example: Example) -> None:
    with serving() as server, Client(server.endpoint) as client:
        lines = example.run(server.endpoint, *TEXTS).stdout.decode().splitlines()
        for line, vector in zip(lines, client.embed(TEXTS), strict=True):
            assert line == f"norm 1.000000  {' '.join(f'{x:.6f}' for x in vector[:4])} …"


def test_a_router_that_is_killed_between_two_requests_costs_no_answer(example: Example) -> None:
    with serving() as server:
        command = [*example.command, example.raw, server.endpoint]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            try:
                for text in ("before", "after", "and again"):
                    process.stdin.write(f"{text}\n".encode())
                    process.stdin.flush()
                    expected = _expected(server, [text])
                    assert process.stdout.read(len(expected)) == expected, text
                    if text == "before":
                        kill(router_of(server.pid))
                process.stdin.close()
                assert process.wait(10) == 0, process.stderr.read().decode()
            finally:
                process.kill()


def test_a_session_ends_with_its_client(example: Example) -> None:
    with serving() as server:
        example.vectors(server.endpoint, *TEXTS)
        wait_until(lambda: segments(server) == 0, 5.0, "the client's segment to go")


def test_a_refusal_is_said_with_its_code_and_the_exit_status(example: Example) -> None:
    with serving("--max-request-rows", "2") as server:
        done = example.run(server.endpoint, *TEXTS)
    assert done.returncode == 1
    assert b"too_large: 4 texts in one request, at most 2" in done.stderr


def test_the_client_in_c_reads_inline_vectors_too(c_client: Example) -> None:
    with serving() as server:
        assert c_client.vectors("-i", server.endpoint, *TEXTS) == _expected(server, TEXTS)
    many = [f"row {i}" for i in range(1000)]  # 1.5 MB: more than its segment holds
    with serving() as server:
        assert c_client.vectors(server.endpoint, *many) == _expected(server, many)


def test_the_client_in_c_waits_no_longer_than_it_is_told(c_client: Example, tmp_path: Path) -> None:
    done = c_client.run("-t", "300", f"ipc://{tmp_path}/nobody", "a text")
    assert done.returncode == 1
    assert b"no answer in time" in done.stderr


def _expected(server: Server, texts: Sequence[str]) -> bytes:
    with Client(server.endpoint) as client:
        return client.embed(texts).tobytes()
