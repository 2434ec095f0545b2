"""Joins what aarch64.sh has run under emulation to results/aarch64.json: tests that failed or were skipped, each with its
reason, and how near vectors of real weights come to those of x86.

A failure is either explained in WHY, by what the emulator does otherwise than an ARM machine, or it is a failure: then this
ends with 1. What is not run at all is in LEFT_OUT, with its reason.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import numpy as np

from aarch64_vectors import texts_and_reference
from common import write

SCENARIO = """No time is taken.
tests: run under qemu's user-mode emulation of a Cortex-A76, in a Debian root for arm64 with the aarch64 wheels of all
dependencies; aarch64.sh bounds how long, and what was not reached by then is not counted.
vectors: of English texts (tests/fixtures/minilm_reference.npz) by real weights of MiniLM, on emulated cores of several kinds,
beside sentence-transformers' on x86 in fp32, and beside embedpool's own on this x86 machine."""

# Of tests/process. The others are left out for a reason that holds for all tests of the file.
FILES = ("client", "conformance", "serve", "reference", "bridge", "tokens")
LEFT_OUT = {
    "tests/faults, and tests/process but for what is listed": "time, which ended the rest of tests/process/test_client.py too",
    "tests/process/test_memory.py": "what a process has in memory is the emulator's: translated code, and no sharing seen",
    "tests/process/test_openvino.py": "its plug-in has no wheel for aarch64",
    "tests/process/test_replanning.py": "CPUs are taken offline by a /proc and /sys made for the host's processes",
    "most of tests/unit": "time: those that ran are of built models, files, numbers and bytes, which a processor could change",
    "tests/systemd": "needs a booted system, of which user-mode emulation has none",
}
WHY: dict[str, str] = {}  # pattern of a test's name -> what the emulator does otherwise; none is proven yet


def of_junit(file: Path) -> dict[str, Any]:
    """Counts, and the names of what failed or was skipped with the reason."""
    failed: dict[str, str] = {}
    unexplained: dict[str, str] = {}
    skipped: dict[str, str] = {}
    cases = list(xml.parse(file).iter("testcase"))  # our own pytest wrote it
    log = file.with_suffix(".log")
    if log.exists() and "KeyboardInterrupt" in log.read_text():
        cases.pop()  # the time ended in it: it has no outcome
    for case in cases:
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        for outcome in case:
            message = (outcome.get("message") or "").splitlines()[0][:200]
            if outcome.tag == "skipped":
                skipped[name] = message
            elif outcome.tag in ("failure", "error"):
                why = next((why for pattern, why in WHY.items() if re.search(pattern, name)), "")
                (failed if why else unexplained)[name] = why or message
    bad = {*failed, *unexplained}
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "failed_by_emulation": failed,
        "failed": unexplained,
        "skipped": skipped,
    }


def cosines(a: Any, b: Any) -> dict[str, float]:
    found = np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64), axis=1)
    return {"mean": round(float(found.mean()), 7), "least": round(float(found.min()), 7)}


def of_vectors(place: Path) -> dict[str, Any]:
    _, reference = texts_and_reference()
    native = json.loads((place / "vectors-native.json").read_text())
    found: dict[str, Any] = {}
    for file in sorted(place.glob("vectors-*.json")):
        one = json.loads(file.read_text())
        rows = {}
        for precision, made in one["of"].items():
            own = native["of"][precision]["vectors"]
            rows[precision] = {
                "texts": len(own),
                "cosine_to_fp32": cosines(made["vectors"], reference),
                "cosine_to_x86": cosines(made["vectors"], own),
                "largest_difference_to_x86": float(np.abs(np.subtract(made["vectors"], own)).max()),
                "same_in_another_process": made["same_in_another_process"],
                "other_bytes_in_a_batch": made["other_bytes_in_a_batch"],
            }
        name = file.stem.removeprefix("vectors-")
        found[name] = {name: one[name] for name in ("machine", "features", "q8_weights")} | {"of": rows}
    return found


def main() -> int:
    if sys.argv[1] == "--files":
        print(" ".join(f"tests/process/test_{name}.py" for name in FILES))
        return 0
    place = Path(sys.argv[1])
    emulated = json.loads((place / "vectors-cortex-a76.json").read_text())
    emulator = subprocess.run(["qemu-aarch64-static", "--version"], capture_output=True, text=True, check=True).stdout
    tests = {file.stem: of_junit(file) for file in sorted(place.glob("*.xml"))}
    results = {
        "emulator": emulator.splitlines()[0],
        "emulated": {name: emulated[name] for name in ("machine", "python", "packages")},
        "tests": tests,
        "left_out": LEFT_OUT,
        "vectors": of_vectors(place),
    }
    write("aarch64", SCENARIO, results)
    failed = [name for part in tests.values() for name in part["failed"]]
    print("\n".join(f"failed, and not by emulation as far as is known: {name}" for name in failed), file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
