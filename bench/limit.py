"""What this machine can do at the most, and from that the least time that a model's operations and bytes take.

rate: multiplying matrices in each precision, per core and on all cores at the same time (a pinned process each, their rates
added), the best run of the best library that is here;
reading: from the beginning to the end of an array as large as a model's weights, likewise;
least: of one query of so many tokens, the longer of operations / rate and bytes of weights / reading, on all cores; of many
texts, their operations / rate. Operations are those of the products in the model's graph, counted from the shapes of a run;
bytes those of the weights in these products, as large as the precision makes them.

What a graph does besides (norms, activations, softmax, tokens) is not in it: no program reaches the limit.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common import write
from peers_install import Missing, build, default_place, gemma, minilm

KERNELS = Path(__file__).parent / "limit_kernels.py"
BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}  # of a weight
ARITHMETIC = {"int4": "int8"}  # the precision in which products of such weights are computed
COUNTED = (16, 64, 256)  # tokens: three lengths say what grows with them, and what with their square
TOKENS = (16, 64, 256)
CHILD_S = 90.0
# Libraries that are not in this environment may lie in a peer's.
ELSEWHERE = {"torch": "sentence-transformers", "openvino": "openvino"}
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cost:
    """Operations of one row of T tokens: fixed + per_token * T + per_pair * T * T; `weights`: how many the products hold."""

    fixed: float
    per_token: float
    per_pair: float
    weights: int

    def ops(self, tokens: int) -> float:
        return self.fixed + self.per_token * tokens + self.per_pair * tokens * tokens


@dataclass(frozen=True)
class Rates:
    """On `cores` cores at the same time: operations per second by precision, bytes per second by the MB that are read."""

    cores: int
    ops: dict[str, float]
    reads: dict[int, float]

    def rate(self, precision: str) -> float | None:
        """None: not measured here."""
        return self.ops.get(ARITHMETIC.get(precision, precision))

    def reading(self, nbytes: float) -> float:
        """Of an array about as large: small ones stay in a cache. The nearest of the sizes measured."""
        return self.reads[min(self.reads, key=lambda size: abs(math.log(size * 1e6 / nbytes)))]


def cost_of(counted: Sequence[tuple[int, float]], weights: int) -> Cost:
    """From the operations at three lengths (tokens, operations)."""
    (a, x), (b, y), (c, z) = counted
    slope, next_slope = (y - x) / (b - a), (z - y) / (c - b)
    per_pair = (next_slope - slope) / (c - a)
    per_token = slope - per_pair * (a + b)
    return Cost(x - per_token * a - per_pair * a * a, per_token, per_pair, weights)


def least_s(cost: Cost, tokens: int, precision: str, rates: Rates) -> float | None:
    """Of one query. None: the precision's rate is not known here."""
    rate, nbytes = rates.rate(precision), cost.weights * BYTES[precision]
    return None if rate is None else max(cost.ops(tokens) / rate, nbytes / rates.reading(nbytes))


def least_bulk_s(cost: Cost, lengths: Iterable[int], precision: str, rates: Rates) -> float | None:
    """Of many texts: their weights are read once for all."""
    rate = rates.rate(precision)
    return None if rate is None else sum(map(cost.ops, lengths)) / rate


def fastest(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Each precision's best rate, of rates by library."""
    best: dict[str, float] = {}
    for rates in found.values():
        for precision, rate in rates.items():
            best[precision] = max(rate, best.get(precision, 0.0))
    return best


# ── the model's operations ───────────────────────────────────────────────────────────────────────────────────────────


@cache
def cost(graph: str) -> Cost:
    """Of a graph as bench/peers_install.build makes it, from the shapes that its products have in runs of three lengths."""
    import numpy as np
    import onnx
    import onnxruntime as ort

    model = onnx.load_model(graph, load_external_data=False)
    weights = {each.name: math.prod(each.dims) for each in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in (*PRODUCTS, "MultiHeadAttention")]
    looked_at = dict.fromkeys(name for node in nodes for name in (*node.input[:2], node.output[0]) if name not in weights)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in looked_at)
    looking = Path(graph).with_suffix(".looking.onnx")  # its data lies beside it
    looking.write_bytes(model.SerializeToString())
    try:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        session = ort.InferenceSession(str(looking), options, providers=["CPUExecutionProvider"])
    finally:
        looking.unlink()
    counted = []
    for tokens in COUNTED:
        row = np.ones((1, tokens), np.int64)
        found = session.run(list(looked_at), {"input_ids": row, "attention_mask": row})
        shapes = {name: value.shape for name, value in zip(looked_at, found, strict=True)}
        counted.append((tokens, sum(_ops(node, shapes) for node in nodes)))
    return cost_of(counted, sum(weights.get(name, 0) for node in nodes if node.op_type in PRODUCTS for name in node.input[:2]))


def _ops(node: Any, shapes: dict[str, tuple[int, ...]]) -> float:
    if node.op_type == "MultiHeadAttention":  # queries by keys, and their weights by values
        return 4.0 * math.prod(shapes[node.output[0]]) * shapes[node.input[1]][1]
    return 2.0 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Machine:
    """`by_library` and `missing` are of one core; `missing` says why a library's rates are not there."""

    one: Rates
    all: Rates
    by_library: dict[str, dict[str, float]]
    missing: dict[str, str]


def python_with(library: str, place: Path) -> str | None:
    """An interpreter that has it: this one, or a peer's."""
    if importlib.util.find_spec(library) is not None:
        return sys.executable
    other = place / ELSEWHERE.get(library, "-") / "bin" / "python"
    return str(other) if other.is_file() else None


def measured(python: str, library: str, cores: Sequence[int]) -> dict[str, float]:
    """The sum over these cores, all busy at the same time. Raises Missing."""
    command = [python, str(KERNELS), library]
    running = [
        subprocess.Popen(
            [*command, str(core)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for core in cores
    ]
    try:
        for process in running:
            _line(process)
        for process in running:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        found = [json.loads(_line(process)) for process in running]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return {name: sum(each[name] for each in found) for name in found[0]}


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None and process.stderr is not None
    if not select.select([process.stdout], [], [], CHILD_S)[0]:
        raise Missing(f"not measured within {CHILD_S:g} s")
    text = process.stdout.readline()
    if not text:
        raise Missing((process.stderr.read().strip().splitlines() or ["it ended"])[-1][:300])
    return text


@cache
def machine(place: Path | None = None, cores: int = 0) -> Machine:
    """Measured at the first call, in about half a minute. `place` holds the peers' environments; `cores` 0: all."""
    available = sorted(os.sched_getaffinity(0))
    sides = (available[:1], available[: cores or None])
    reads = [measured(sys.executable, "memory", side) for side in sides]
    both, missing = dict[str, list[dict[str, float]]](), dict[str, str]()
    for library in ("numpy", "onnxruntime", "torch", "openvino"):
        python = python_with(library, place or default_place())
        try:
            if python is None:
                raise Missing("not installed, here or as a peer")
            both[library] = [measured(python, library, side) for side in sides]
        except Missing as error:
            missing[library] = str(error)

    def rates(i: int) -> Rates:
        ops = fastest({library: found[i] for library, found in both.items()})
        return Rates(len(sides[i]), ops, {int(mb): rate for mb, rate in reads[i].items()})

    return Machine(rates(0), rates(1), {library: found[0] for library, found in both.items()}, missing)


def least_ms(model: str, tokens: int, precision: str) -> float | None:
    """The least time for a query of so many tokens on all cores; `model` is a graph. Measures the machine at the first call."""
    seconds = least_s(cost(model), tokens, precision, machine().all)
    return None if seconds is None else seconds * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, default=default_place(), help="the peers' environments, and their models")
    given = parser.parse_args()
    began = time.monotonic()
    found = machine(given.venvs)
    models = {}
    for name, source in (("minilm", minilm), ("gemma", lambda: gemma(given.venvs / "models"))):
        try:
            models[name] = of_model(cost(str(build(source(), given.venvs / "models" / f"{name}-built"))), found)
        except Missing as error:
            models[name] = {"error": str(error)}
    results = {"machine": of_machine(found), "models": models, "took_s": round(time.monotonic() - began)}
    write("limit", " ".join((__doc__ or "").split()), results)


def of_machine(found: Machine) -> dict[str, Any]:
    def giga(rates: dict[Any, float]) -> dict[str, float]:
        return {str(name): round(rate / 1e9, 1) for name, rate in rates.items()}

    return {
        "cores": found.all.cores,
        "gops_one_core": giga(found.one.ops),
        "gops_all_cores": giga(found.all.ops),
        "gops_one_core_by_library": {library: giga(rates) for library, rates in found.by_library.items()},
        "reading_gb_per_s_one_core_by_mb": giga(found.one.reads),
        "reading_gb_per_s_all_cores_by_mb": giga(found.all.reads),
        "not_measured": found.missing,
    }


def of_model(cost: Cost, found: Machine) -> dict[str, Any]:
    def least(rates: Rates) -> dict[str, Any]:
        times = {p: {str(n): least_s(cost, n, p, rates) for n in TOKENS} for p in BYTES if rates.rate(p) is not None}
        return {p: {n: round(s * 1e3, 2) for n, s in each.items() if s is not None} for p, each in times.items()}

    return {
        "weights_in_products": cost.weights,
        "mega_ops": {str(tokens): round(cost.ops(tokens) / 1e6) for tokens in TOKENS},
        "least_ms_one_core": least(found.one),
        "least_ms_all_cores": least(found.all),
    }


if __name__ == "__main__":
    main()
