"""What every bench script shares: the machine, percentiles, and the result file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedpool import Pool
    from embedpool.models.encoder import OnnxEncoder

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("embedpool", "onnxruntime", "numpy", "pyzmq", "msgpack", "tokenizers")


def machine() -> dict[str, Any]:
    """The processor, cores, kernel and versions that a number belongs to."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")) and not model:
            model = line.partition(":")[2].strip()
    return {
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def commit() -> str:
    """The commit that was measured, with "+" where the tree had changes."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    # Result files and rendered pages are written by the runs themselves: they are no change to what is measured.
    what = ["--", ".", ":!results", ":!README.md", ":!../README.md"]
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", *what], cwd=here, check=False).returncode
    return found.stdout.strip() + ("+" if changed else "")


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is not below `percent` per cent of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def write(name: str, scenario: str, results: dict[str, Any]) -> None:
    """Writes results/NAME.json; `scenario` says between which two instants the time is taken."""
    RESULTS.mkdir(exist_ok=True)
    found = {
        "name": name,
        "scenario": scenario,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "results": results,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    json.dump(results, sys.stdout, indent=2)
    print(f"\nwritten to {path}")


def encoder_of(model: str, **wanted: Any) -> OnnxEncoder:
    """What a worker computes with, in this process; the model is prepared if it is not yet."""
    from embedpool.config import Config
    from embedpool.models.artifact import prepare
    from embedpool.models.encoder import OnnxEncoder, load_tokenizer
    from embedpool.models.resolve import Wanted, resolve

    cache = Path(wanted.get("cache") or Config().cache_path())
    spec = prepare(resolve(Wanted(model, **wanted)), cache).spec
    return OnnxEncoder(spec, 1, load_tokenizer(spec))


def wait_for_workers(pool: Pool, count: int) -> list[int]:
    """Returns when so many workers take jobs; their process ids."""
    while True:
        ready = [worker["pid"] for worker in json.loads(pool.status())["workers"] if worker["state"] in ("idle", "busy")]
        if len(ready) >= count:
            return ready
        time.sleep(0.005)
