"""From a Source to an artifact that workers map: complete or build the graph, quantise it, optimise it, try it, store it.

Runs in a child process of its own (`python -m embedpool.models`), at the first start of a model and never again on the same
machine. What is loaded here is heavy; finding an artifact that exists loads none of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from embedpool.errors import ModelError
from embedpool.models import cache, hub
from embedpool.models.cache import Artifact, Cache, Machine, this_machine
from embedpool.models.held import hold_to
from embedpool.models.providers import ARM
from embedpool.models.registry import BERT_UNCASED, BERT_UNCASED_SHA256
from embedpool.models.resolve import Source
from embedpool.models.spec import ModelSpec
from embedpool.router.cost import CHARS_PER_TOKEN, ROW_UNITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embedpool.models.build.complete import Completed
    from embedpool.models.tokenizer import Tokenizer

BUILD = 1  # raised when the same source comes to give other vectors
# A way of quantising that gives other values than the one before has another name here. So has ARM: what it makes of the same
# weights is as near to fp32 (0.99887 and 0.99866, on an emulated Cortex-A76), but only 0.9993 near to what x86 makes of them.
QUANTIZE = {"q8": "q8 by tokens on ARM" if platform.machine() in ARM else "q8 by tokens"}
MEASURED_TOKENS = 64  # the length at which a unit of work is timed
# Bytes on disk at the most, per byte of fp32 weights: the graph that is optimised, smaller weights made of it, and the
# result, which holds the weights of matrix products twice (plain and packed).
ROOM = 3.2
FULL_BYTES = 1 << 20  # a disk with less is taken for full

Report = Callable[[str], None]


def prepare(source: Source, root: Path, report: Report = lambda _: None) -> Artifact:
    """The source's artifact in the cache directory `root`; made if it is not there. `report` is told what takes time.

    Raises ModelError naming the file that is at fault: damaged, missing, not known here, no room, no permission.
    """
    store, machine = Cache(root), this_machine()
    digests = _digests(source, store)
    fingerprint = fingerprint_of(source, digests, machine.runtime)
    name = _name(source, fingerprint, machine)
    found = store.find(name)
    if found is not None:
        return found
    with store.locked(lambda: report("waiting for another process that prepares a model")):
        found = store.find(name)
        if found is not None:
            return found
        store.needs(round(ROOM * _fp32_bytes(source, digests)), source.name)
        report(f"preparing {source.name} for this machine, once")
        began = time.monotonic()
        try:
            with store.making(name) as directory:
                _make(source, fingerprint, machine, digests, directory, report)
        except OSError as error:
            raise ModelError(f"{source.name} could not be prepared in {root}: {error.strerror or error}") from error
        made = store.find(name)
        assert made is not None
        report(f"prepared {source.name} in {time.monotonic() - began:.1f} s: {made.nbytes / 1e6:.0f} MB in {made.path}")
        return made


# ── what it is ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _digests(source: Source, store: Cache) -> dict[Path, str]:
    """sha256 of every file that decides a vector's values. Raises ModelError for one that is not as somebody stated it."""
    digests: dict[Path, str] = {}
    if source.onnx is not None:
        digests[source.onnx] = _digest(source.onnx, source, store)  # before it is read for the names of its data
        digests |= {file: _digest(file, source, store) for file in _external(source.onnx, store)}
    others = [*source.weights, *(folder / "model.safetensors" for folder in source.dense)]
    if source.tokenizer != BERT_UNCASED:
        others.append(Path(source.tokenizer))
    return digests | {file: _digest(file, source, store) for file in others}


def _digest(file: Path, source: Source, store: Cache) -> str:
    if not file.is_file():
        raise ModelError(f"{file} is missing: the model was not downloaded whole")
    found = store.digest(file)
    stated = source.stated.get(file) or hub.stated_sha256(file) or found
    if found != stated:
        raise ModelError(
            f"{file} is damaged: its sha256 is {found[:16]}…, not {stated[:16]}…; delete it ({file.resolve()}) and get it again"
        )
    return found


def _external(onnx: Path, store: Cache) -> list[Path]:
    """The files in which the graph keeps its weights, by its own words. Reading it takes a library that is slow to load, so
    they are remembered by its digest."""

    def read() -> list[str]:
        from embedpool.models.build import complete

        return [file.name for file in complete.external_files(complete.read(onnx), onnx)]

    return [onnx.parent / name for name in store.remembered(f"external-{store.digest(onnx)[:32]}", read)]


def fingerprint_of(source: Source, digests: dict[Path, str], runtime: str) -> str:
    """16 hex digits over everything that decides a vector's values: files, how they are used, and the runtime.

    Not over where files lie, nor over the processor: vectors of two machines may be mixed.
    """
    use = {
        "build": BUILD,
        "files": sorted(digests.values()),
        "tokenizer": BERT_UNCASED_SHA256 if source.tokenizer == BERT_UNCASED else digests[Path(source.tokenizer)],
        "config": source.config if source.weights else {},
        "pooling": source.pooling,
        "dense": [json.loads(_text(folder / "config.json") or "{}") for folder in source.dense],
        "normalize": source.normalize,
        "max_tokens": source.max_tokens,
        "lowercase": source.lowercase,
        "prompts": source.prompts,
        "titled": source.titled,
        "default_prompt": source.default_prompt,
        "quantize": QUANTIZE.get(source.quantize, source.quantize),
        "append": source.append,
        "output_range": source.output_range,
        "runtime": runtime,
        **source.compute.identity(),
    }
    return hashlib.sha256(json.dumps(use, sort_keys=True).encode()).hexdigest()[:16]


def _name(source: Source, fingerprint: str, machine: Machine) -> str:
    key = json.dumps([cache.FORMAT, source.name, fingerprint, machine.arch, machine.features, machine.runtime])
    plain = re.sub(r"[^\w.-]+", "-", source.name)[:48].strip(".-") or "model"
    return f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _fp32_bytes(source: Source, digests: dict[Path, str]) -> int:
    sizes = {path: path.stat().st_size for path in digests if path.suffix != ".json"}
    halves = {path: 2 * size for path, size in sizes.items() if path in source.weights}  # mostly bfloat16
    return sum({**sizes, **halves}.values())


# ── making it ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _make(
    source: Source, fingerprint: str, machine: Machine, digests: dict[Path, str], directory: Path, report: Report
) -> None:
    from embedpool.models.build import complete
    from embedpool.models.build.quantize import quantize
    from embedpool.models.encoder import GRAPH, TOKENIZER
    from embedpool.models.probes import TYPICAL

    with _workshop(directory) as workshop:
        graph = workshop / GRAPH
        tokenizer, pad_id = _tokenizer(source)
        tokenizer.save(directory / TOKENIZER)
        made = _graph(source, graph)
        output, one_by_one, whole = made.output, made.one_by_one, made.model
        if source.quantize and output == "float32":
            report(f"quantising to {source.quantize}")
            texts, smaller = tokenizer.tokens(TYPICAL, "right"), workshop / "smaller.onnx"
            whole = quantize(made.model, graph, smaller, source.quantize, texts, signed=adds_signed(machine))
            smaller.write_bytes(whole.SerializeToString())
            one_by_one = complete.one_by_one(whole)
        _check_numbers(source, one_by_one)
        _optimize(graph if whole is made.model else smaller, directory / GRAPH, source.compute.provider.portable)
        spec = ModelSpec(
            name=source.name,
            directory=str(directory),
            dim=0,
            max_tokens=source.max_tokens,
            lowercase=source.lowercase,
            pad_id=pad_id,
            prompts=source.prompts,
            titled=source.titled,
            default_prompt=source.default_prompt,
            pooling=source.pooling,
            output=output,
            output_range=source.output_range if output == "uint8" else None,
            one_by_one=one_by_one or source.compute.provider.alone,
            precision=source.compute.precision(complete.precision(whole)),
            provider=source.compute.provider.name,
            provider_options=source.compute.options,
            width_step=source.compute.provider.width_step,
            batch_tokens=source.compute.provider.batch_tokens,
            fingerprint=fingerprint,
        )
        spec, cosines = _tried(spec, _baseline(source, graph, report))
    lossy = bool(source.quantize) or source.reference is not None
    if not lossy:
        hold_to(cosines, source)
    measured = {
        "cosine": {"mean": float(cosines.mean()), "least": float(cosines.min()), "texts": len(cosines)},
        "to": "fp32" if lossy or source.compute.lossy else "itself",
    }
    cache.note(replace(spec, directory=""), machine, digests, directory, measured)


def adds_signed(machine: Machine) -> bool:
    """Whether this processor adds products of uint8 and int8 without losing any. x86 before VNNI adds pairs of them in 16 bits,
    which they overflow (Intel's manual, PMADDUBSW); of two uint8 the runtime's kernels there lose nothing."""
    x86 = machine.arch in ("x86_64", "AMD64", "i686")
    return not x86 or bool({"avx512_vnni", "avx_vnni"} & set(machine.features))


def _baseline(source: Source, graph: Path, report: Report) -> Path:
    """The graph that the result is compared with: its own before it was changed, or that of the fp32 weights beside it."""
    if source.reference is None:
        return graph
    report("comparing with the fp32 weights beside it")
    baseline = graph.parent / "reference" / graph.name
    baseline.parent.mkdir()
    _graph(source.reference, baseline)
    return baseline


def _check_numbers(source: Source, one_by_one: bool) -> None:
    """Activations of 8 bits with one scale for all that runs together are for ONNX Runtime's kernels: OpenVINO computes them at
    a quarter of the speed of fp32 in bf16, and with other vectors (cosine 0.989 to 0.992)."""
    if one_by_one and source.compute.provider.name != "cpu":
        raise ModelError(
            f"the graph of {source.name} quantises as it runs, which is for --provider cpu: give --precision fp32 with"
            f" --provider {source.compute.provider.name}"
        )


def _optimize(graph: Path, target: Path, portable: bool) -> None:
    from embedpool.models.session import store_optimized

    try:
        store_optimized(graph, target, portable=portable)
    except ModelError as error:
        if shutil.disk_usage(target.parent).free < FULL_BYTES:  # the runtime has other words for it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


@contextlib.contextmanager
def _workshop(directory: Path) -> Iterator[Path]:
    """A place for files that do not stay."""
    workshop = directory / "workshop"
    workshop.mkdir()
    try:
        yield workshop
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _graph(source: Source, target: Path) -> Completed:
    """The source's graph in the one form of `build.complete`, stored at `target` with its data."""
    from embedpool.models.build import complete, family
    from embedpool.models.build.tail import Tail, dense_of

    dense = tuple(dense_of(json.loads(_text(folder / "config.json") or "{}"), folder) for folder in source.dense)
    tail = Tail(source.pooling, dense, source.normalize) if source.pooling else None
    if source.onnx is None:
        if tail is None:
            raise ModelError(complete.no_pooling(source.weights[0].parent))
        model = family.build(source.weights, source.config, tail, source.max_tokens, target.parent)
        made = complete.Completed(model, "float32", False)
    else:
        model = complete.read(source.onnx)
        if source.no_float16 and complete.has_float16(model):
            raise ModelError(f"{source.onnx} computes with float16, in which {source.name} cannot be run: {source.no_float16}")
        for data in complete.external_files(model, source.onnx):
            _place(data.resolve(), target.parent / data.name)
        made = complete.complete(model, source.onnx, tail, int(source.config.get("hidden_size") or 0))
    target.write_bytes(made.model.SerializeToString())
    return made


def _place(source: Path, target: Path) -> None:
    """A hub cache is made of links, and ONNX Runtime refuses external data behind a link that leaves the graph's directory
    (since 1.24): hard-linked, or copied across file systems."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _tokenizer(source: Source) -> tuple[Tokenizer, int]:
    from embedpool.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(source.tokenizer, source.max_tokens, lowercase=source.lowercase)
    if source.append:
        tokenizer.append(source.append)
    special = len(tokenizer.tokens([""], "")[0])
    if source.max_tokens <= special:
        raise ModelError(f"--max-tokens {source.max_tokens} leaves no room: {source.name} adds {special} tokens to every text")
    return tokenizer, tokenizer.pad_id(source.pad)


def _tried(spec: ModelSpec, graph: Path) -> tuple[ModelSpec, NDArray[np.float64]]:
    """The spec completed by real runs, and the cosine of each probe's vector to the one of the graph before it was quantised
    and optimised. Raises ModelError if a run fails."""
    import numpy as np

    from embedpool.models.encoder import OnnxEncoder, load_tokenizer
    from embedpool.models.probes import PROBES
    from embedpool.models.session import open_session

    encoder = OnnxEncoder(spec, 1, load_tokenizer(spec))
    plain = open_session(graph, 1)
    cosines = []
    for ids in encoder.tokens(PROBES, "right"):
        try:
            vector = encoder.run([ids], spec.width(len(ids)))
            feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
            (reference,) = plain.run(None, feed)
        except Exception as error:  # the runtime's exceptions have no common public base class
            raise ModelError(f"{spec.name} cannot be run: {str(error).split(' : ')[-1].strip()}") from error
        if vector.ndim != 2 or not np.isfinite(vector).all():
            raise ModelError(f"{spec.name} gives values that are not finite, or not one vector per text")
        a, b = vector[0].astype(np.float64), reference[0].astype(np.float64)
        cosines.append(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-300))
    ids = [spec.pad_id] * min(MEASURED_TOKENS, spec.max_tokens)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        encoder.run([ids], len(ids))
        times.append((time.perf_counter() - began) * 1e3)
    unit_ms = sorted(times)[1] / (len(ids) * CHARS_PER_TOKEN + ROW_UNITS)
    return replace(spec, dim=vector.shape[1], unit_ms=unit_ms), np.array(cosines)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
