"""Opens ONNX Runtime's sessions: the one place that knows how each provider wants to be asked.

A plug-in's library is loaded here, in the worker that uses it: the process that workers are forked from has none of it, for it
must have no threads. Providers as data, and which of them may be used, are in models.providers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

# Telemetry has been on by default in Linux wheels since 1.29; it is read at import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

from embedpool.errors import ModelError
from embedpool.models.providers import BY_NAME, Provider

DATA = "model.onnx.data"  # of an artifact: the weights, beside its graph


def available() -> tuple[str, ...]:
    """The providers that are part of the installed ONNX Runtime, by its own names."""
    return tuple(ort.get_available_providers())


def runtime_build() -> dict[str, str]:
    """What of the runtime is loaded here: its version, what it was built as, and the providers that it could use."""
    return {"version": ort.__version__, "build": ort.get_build_info(), "providers": ", ".join(ort.get_available_providers())}


def run_options() -> ort.RunOptions:
    """For one run, which setting `terminate` ends, where the provider looks at it."""
    options = ort.RunOptions()
    options.log_severity_level = 4  # that it was interrupted is no error
    return options


def open_session(
    graph: Path, threads: int, provider: str = "cpu", given: dict[str, str] | None = None, device: int = 0
) -> ort.InferenceSession:
    """A session on `threads` threads, on GPU number `device` where it is one's. Raises ModelError with the runtime's own words
    where it cannot be loaded, and where the provider does not take what it has to.

    An artifact's graph is loaded as it is: it was optimised when it was made, but for GPUs, whose providers do it as they load.
    """
    asked = BY_NAME[provider]
    options = _options(threads)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if asked.gpu else level.ORT_DISABLE_ALL
    try:
        if asked.package:
            pinned = len(os.sched_getaffinity(0)) <= threads
            return _with_plugin(graph, options, asked, openvino(given or {}, threads, pinned=pinned))
        where = {"device_id": str(device)} if asked.gpu else {}
        session = ort.InferenceSession(str(graph), options, providers=[(asked.runtime, {**(given or {}), **where})])
    except ModelError:
        raise
    except Exception as error:  # the runtime's exceptions have no common public base class
        raise ModelError(f"{graph} cannot be loaded{_by(asked)}: {_reason(error)}") from error
    if asked.runtime not in session.get_providers():  # ONNX Runtime goes on with the processor, and merely logs it
        raise ModelError(f"ONNX Runtime could not start {asked.runtime}: are its driver and libraries installed?")
    return session


def store_optimized(graph: Path, target: Path, *, portable: bool) -> None:
    """Stores the graph optimised, its weights in DATA beside it. Raises ModelError.

    By default in the form in which this machine's kernels read it, weights included; sessions that load it then share those
    pages instead of packing weights into memory of their own. `portable`: only what holds for every provider is done
    (constants folded, what changes nothing left out), and weights stay as they are.
    """
    options = _options(1)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_BASIC if portable else level.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    entries = {
        "session.optimized_model_external_initializers_file_name": DATA,
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "0" if portable else "1",
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(f"{graph} cannot be loaded: {_reason(error)}") from error


def openvino(given: dict[str, str], threads: int, *, pinned: bool) -> dict[str, str]:
    """OpenVINO's properties of its CPU device. `pinned`: this process has as many cores as threads.

    A thread that runs a model gets another mask from it for as long as the run takes: with its own pinning one core of the
    process's mask, without it the whole machine. So it pins where the worker is pinned, and not where it would choose among
    cores that other workers choose from as well.

    Its own cache of compiled models (CACHE_DIR) is left off: it is a second copy of all weights on disk and saves 0.1 s of
    MiniLM's start and 0.6 s of EmbeddingGemma's, of 0.2 and 1.2 s. Without it, weights are mapped from the artifact.
    """
    own = {
        "INFERENCE_PRECISION_HINT": given.get("precision", "f32"),
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": "YES" if pinned else "NO",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # else it rounds activations where weights have 8 bits: cosine 0.9993
    }
    return own | {name: value for name, value in given.items() if name.isupper()}


def _options(threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A spinning thread burns 47-333 ms of a core after each run, which other workers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _with_plugin(
    graph: Path, options: ort.SessionOptions, provider: Provider, properties: dict[str, str]
) -> ort.InferenceSession:
    """Raises ModelError if the plug-in does not take the whole graph: what is left to other kernels would cut it into pieces,
    and its values would no longer be those of one precision."""
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices([_device(provider)], {"load_config": json.dumps({"CPU": properties})})
    try:
        return ort.InferenceSession(str(graph), options)
    except Exception as error:
        if "fallback" in str(error):
            raise ModelError(f"OpenVINO cannot compute the whole of {graph}: use --provider cpu") from error
        raise


def _device(provider: Provider) -> ort.OrtEpDevice:
    found = _devices(provider)
    if not found:
        import onnxruntime_ep_openvino

        try:
            ort.register_execution_provider_library(provider.name, onnxruntime_ep_openvino.get_library_path())
        except Exception as error:
            raise ModelError(
                f"{provider.package} does not fit the installed ONNX Runtime {ort.__version__}: {_reason(error)}"
            ) from error
        found = _devices(provider)
    if not found:
        raise ModelError(f"{provider.package} finds no processor that it can compute on")
    return found[0]


def _devices(provider: Provider) -> list[ort.OrtEpDevice]:
    return [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == provider.runtime and device.device.type == ort.OrtHardwareDeviceType.CPU
    ]


def _by(provider: Provider) -> str:
    return "" if provider.name == "cpu" else f" by {provider.runtime}"


def _reason(error: Exception) -> str:
    return str(error).split(" : ")[-1].strip() or type(error).__name__
