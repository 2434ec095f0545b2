"""Requests made from the gateway's own OpenAPI document, and wrong in a thousand ways: never a 500, and every answer is of a
kind that the document names.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.faults.test_gateways import LISTEN, url_of
from tests.support import serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_request_that_the_document_allows_or_nearly_allows_is_answered_by_an_internal_error(tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("schemathesis")
    with serving("--http", LISTEN, "--http-model-alias", "*") as server:
        command = [str(tool), "run", f"{url_of(server)}/openapi.json", f"--checks={CHECKS}", "--max-examples=25", "--seed=1"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
