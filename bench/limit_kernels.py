"""One core's rate of multiplying matrices with one library, or of reading memory: `python limit_kernels.py LIBRARY CORE`.

A process of its own, since each library brings threads and instruction sets of its own, and perhaps an environment. It says
`ready`, waits for a line, measures each kernel for SECONDS, and prints the best run of each as JSON: operations (or bytes) per
second. A multiplication and an addition are two operations.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np  # noqa: E402 - it reads these variables when it is loaded

SECONDS = 0.3
# Rows, inner and outer width: of MiniLM's and EmbeddingGemma's largest layers, and a shape in which libraries shine.
SHAPES = ((256, 384, 1536), (256, 768, 2304), (512, 1024, 4096))
READS_MB = (40, 100, 400)  # about what MiniLM in fp32, EmbeddingGemma in 8 bits and in fp32 read for a query

Kernel = Callable[[], object]


def best(kernel: Kernel, amount: float) -> float:
    """Of the runs within SECONDS, the fastest: what others took from the core is not what the core can do."""
    kernel()
    least, end_at = float("inf"), time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < end_at:
        kernel()
        least = min(least, time.perf_counter() - began)
    return amount / least


def products(kernel: Callable[[int, int, int], Kernel]) -> float:
    return max(best(kernel(m, k, n), 2.0 * m * k * n) for m, k, n in SHAPES)


def of_memory() -> dict[str, float]:
    """Reading a float32 array of so many MB from its beginning to its end (sdot of it with itself reads it once)."""
    found = {}
    for size in READS_MB:
        values = np.ones(size * 250_000, np.float32)
        found[str(size)] = best(lambda values=values: np.dot(values, values), values.nbytes)  # type: ignore[misc]
    return found


def of_numpy() -> dict[str, float]:
    def kernel(m: int, k: int, n: int) -> Kernel:
        left, right, out = np.ones((m, k), np.float32), np.ones((k, n), np.float32), np.empty((m, n), np.float32)
        return lambda: np.matmul(left, right, out=out)

    return {"fp32": products(kernel)}


def of_onnxruntime() -> dict[str, float]:
    """MatMul, and MatMulInteger of u8 by s8, with constant weights: models of a single node."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    def session(operator: str, given: int, result: int, weights: np.ndarray, m: int) -> Kernel:
        k, n = weights.shape
        graph = helper.make_graph(
            [helper.make_node(operator, ["x", "w"], ["y"])],
            operator,
            [helper.make_tensor_value_info("x", given, (m, k))],
            [helper.make_tensor_value_info("y", result, (m, n))],
            [numpy_helper.from_array(weights, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        runtime = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        x = np.ones((m, k), helper.tensor_dtype_to_np_dtype(given))
        return lambda: runtime.run(None, {"x": x})

    def fp32(m: int, k: int, n: int) -> Kernel:
        return session("MatMul", TensorProto.FLOAT, TensorProto.FLOAT, np.ones((k, n), np.float32), m)

    def int8(m: int, k: int, n: int) -> Kernel:
        return session("MatMulInteger", TensorProto.UINT8, TensorProto.INT32, np.ones((k, n), np.int8), m)

    return {"fp32": products(fp32), "int8": products(int8)}


def of_torch() -> dict[str, float]:
    import torch

    torch.set_num_threads(1)

    def kernel(dtype: torch.dtype) -> Callable[[int, int, int], Kernel]:
        def of(m: int, k: int, n: int) -> Kernel:
            left, right = torch.ones((m, k), dtype=dtype), torch.ones((k, n), dtype=dtype)
            if dtype == torch.int8:
                return lambda: torch._int_mm(left, right)
            return lambda: torch.mm(left, right)

        return of

    with torch.inference_mode():
        return {
            "fp32": products(kernel(torch.float32)),
            "bf16": products(kernel(torch.bfloat16)),
            "int8": products(kernel(torch.int8)),
        }


def of_openvino() -> dict[str, float]:
    import openvino
    from openvino import opset13 as op

    def kernel(precision: str) -> Callable[[int, int, int], Kernel]:
        def of(m: int, k: int, n: int) -> Kernel:
            x = op.parameter([m, k], np.float32)
            model = openvino.Model([op.matmul(x, op.constant(np.ones((k, n), np.float32)), False, False)], [x])
            options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
            request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
            request.set_input_tensor(openvino.Tensor(np.ones((m, k), np.float32)))
            return request.infer

        return of

    return {"fp32": products(kernel("f32")), "bf16": products(kernel("bf16"))}


LIBRARIES = {
    "memory": of_memory,
    "numpy": of_numpy,
    "onnxruntime": of_onnxruntime,
    "torch": of_torch,
    "openvino": of_openvino,
}

if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[2])})
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(LIBRARIES[sys.argv[1]]()), flush=True)
