"""The README's curl lines do what they say: by an HTTP library everywhere, and by curl itself where there is one."""

from __future__ import annotations

import argparse
import io
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np

from tests.faults.test_gateways import LISTEN, url_of
from tests.support import serving

README = (Path(__file__).parent.parent.parent / "README.md").read_text()
LINES = [line.strip().removeprefix("$ ") for line in README.splitlines() if line.strip().startswith("$ curl ")]
SHOWN = "127.0.0.1:8080"


def parsed(line: str) -> argparse.Namespace:
    grammar = argparse.ArgumentParser()
    grammar.add_argument("curl")
    grammar.add_argument("url")
    grammar.add_argument("-s", action="store_true")
    grammar.add_argument("-H", action="append", dest="headers")
    grammar.add_argument("-d", dest="body")
    grammar.add_argument("-o", dest="file")
    return grammar.parse_args(shlex.split(line))


def test_every_curl_line_is_answered_with_vectors(tmp_path: Path) -> None:
    assert len(LINES) >= 4
    with serving("--http", LISTEN, model="minilm") as server:
        place = url_of(server).removeprefix("http://")
        for line in LINES:
            asked = parsed(line.replace(SHOWN, place))
            headers = dict(header.split(": ", 1) for header in asked.headers)
            answer = httpx.post(f"http://{asked.url}", content=asked.body, headers=headers, timeout=20)
            assert answer.status_code == 200, line
            if asked.file:
                assert np.load(io.BytesIO(answer.content)).shape == (1, 384)
            if shutil.which("curl"):
                command = shlex.split(line.replace(SHOWN, place))
                done = subprocess.run(command, capture_output=True, cwd=tmp_path, timeout=20, check=True)
                assert (tmp_path / asked.file).exists() if asked.file else json.loads(done.stdout)
