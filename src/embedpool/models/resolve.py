"""From the name in `--model` to a Source: which files, and how they become one vector per text. Loads no model.

A name is a known model's (registry), a directory, or a hub id. What the model's own files say goes first; what they leave
out is taken from the registry; what neither says is an error that names the setting to give.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedpool.errors import ModelError
from embedpool.models import directory, hub, registry
from embedpool.models.directory import ModelFiles
from embedpool.models.offered import chosen
from embedpool.models.providers import CPU, Compute
from embedpool.models.registry import BERT_UNCASED, MINILM, PRECISIONS, USUAL_FILES, Known

MINILM_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
MADE = ("q8", "q4")  # precisions that are made from fp32 where there is no file of them


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for. `max_tokens` 0: as the model says."""

    model: str
    precision: str = "auto"
    onnx_file: str = ""
    model_dir: str = ""
    pooling: str = "auto"
    max_tokens: int = 0
    output_range: str = ""
    provider: str = "cpu"
    provider_options: str = ""
    cache: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model before it is prepared: a graph `onnx`, or `weights` with their `config`.

    `pooling` "": nobody says how tokens become one vector, so the graph has to do it. `quantize` "" or one of MADE.
    `append` is a token that ends every text. `stated` holds the sha256 that a file must have, where
    the registry states it; the hub's cache states its own.
    `reference` is the same model in fp32, where that lies beside smaller weights that are to be compared with it.
    """

    name: str
    onnx: Path | None = None
    weights: tuple[Path, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str
    pad: str = ""
    pooling: str = ""
    dense: tuple[Path, ...] = ()
    normalize: bool = False
    max_tokens: int
    lowercase: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    titled: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    quantize: str = ""
    append: str = ""
    output_range: tuple[float, float] | None = None
    no_float16: str = ""  # why the model cannot be run with values of 16 bits, "" if it can
    stated: dict[Path, str] = field(default_factory=dict)
    reference: Source | None = None
    compute: Compute = CPU


def resolve(wanted: Wanted) -> Source:
    """Raises ModelError with one sentence that says what is wrong with which file, or what to do."""
    compute = chosen(wanted.provider, wanted.provider_options)  # first: it costs nothing, and files may have to be downloaded
    return computed_by(compute, _resolved(wanted))


def computed_by(compute: Compute, source: Source) -> Source:
    """The source for a provider. Raises ModelError where the two do not go together."""
    step = compute.provider.width_step
    if source.max_tokens < step:
        raise ModelError(
            f"--provider {compute.provider.name} runs texts in steps of {step} tokens: --max-tokens must be at least that"
        )
    if source.quantize and compute.provider.name != "cpu":
        raise ModelError(
            f"weights of precision {source.quantize} are made for ONNX Runtime's own kernels: give --precision fp32 with"
            f" --provider {compute.provider.name}, or --provider cpu"
        )
    if source.no_float16 and compute.options.get("precision") == "f16":
        raise ModelError(f"{source.name} cannot be computed in f16: {source.no_float16}")
    return replace(source, compute=compute, max_tokens=source.max_tokens // step * step)


def _resolved(wanted: Wanted) -> Source:
    name = wanted.model
    is_directory = bool(name) and Path(name).is_dir()
    known = None if is_directory else registry.find(name)
    if known is not None and wanted.precision in known.refused:
        raise ModelError(f"{known.name} cannot be run in {wanted.precision}: {known.refused[wanted.precision]}")
    if wanted.model_dir and known is None:
        raise ModelError(f"--model-dir gives the files of a known model, which {name} is not: give the directory as --model")
    if known is not None and not wanted.model_dir and _from_package(known, wanted):
        return _package(known, wanted)
    precision = _precision(wanted, known)
    graphs = (wanted.onnx_file,) if wanted.onnx_file else _graphs(known, precision)
    if wanted.model_dir or is_directory:
        place = Path(wanted.model_dir or name).resolve()
    elif known is not None or (hub.HUB_ID.fullmatch(name) and not name.startswith(".")):
        names = (*graphs, *_to_make_from(wanted, known, precision))
        place = hub.download(_hub_id(name, known, precision), names, or_weights=not wanted.onnx_file)
    else:
        others = ", ".join(each.name for each in registry.KNOWN)
        raise ModelError(f"no model {name!r}: it is no directory; give one, or a hub id like owner/name, or one of {others}")
    label = known.name if known is not None else place.name if is_directory else name.partition("@")[0]
    return _source(place, label, known, wanted, precision, graphs)


def _precision(wanted: Wanted, known: Known | None) -> str:
    if wanted.precision == "auto":
        of_repository = {repository: precision for precision, repository in (known.repositories if known else {}).items()}
        return of_repository.get(wanted.model.partition("@")[0], "fp32")
    if wanted.precision not in PRECISIONS:
        raise ModelError(f"precision is auto or one of {', '.join(PRECISIONS)}, not {wanted.precision!r}")
    return wanted.precision


def _graphs(known: Known | None, precision: str) -> tuple[str, ...]:
    """The names that a graph of this precision may have, the most likely first."""
    if known is not None and precision in known.files:
        return known.files[precision]
    if known is not None and precision in known.repositories:
        return (*USUAL_FILES["fp32"], *USUAL_FILES[precision])  # a repository of its own for this precision
    return USUAL_FILES[precision]


def _to_make_from(wanted: Wanted, known: Known | None, precision: str) -> tuple[str, ...]:
    return _graphs(known, "fp32") if precision in MADE and not wanted.onnx_file else ()


def _hub_id(name: str, known: Known | None, precision: str) -> str:
    if known is None or "/" in name:
        return name
    return known.repositories.get(precision, known.repository) + name[len(name.partition("@")[0]) :]


# ── a directory ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _source(place: Path, name: str, known: Known | None, wanted: Wanted, precision: str, graphs: tuple[str, ...]) -> Source:
    auto = wanted.precision == "auto" and not wanted.onnx_file
    files = directory.read(place, (*graphs, *_to_make_from(wanted, known, precision)), wanted.pooling, any_graph=auto)
    if wanted.onnx_file and files.onnx is None:
        raise ModelError(f"{place} has no {wanted.onnx_file}, the graph that --onnx-file names")
    is_there = files.onnx is not None and (auto or files.onnx.relative_to(place).as_posix() in graphs)
    made = precision in MADE and not is_there
    if not is_there and not made and precision != "fp32":
        raise ModelError(f"{place} has no graph of precision {precision} ({' or '.join(graphs)}), and none is made of it here")
    gemma = registry.GEMMA if known is registry.GEMMA or files.config.get("model_type") == "gemma3_text" else None
    prompts = files.prompts or (known.prompts if known else {})
    source = Source(
        name=name,
        onnx=files.onnx,
        weights=files.weights,
        config=files.config,
        tokenizer=str(files.tokenizer),
        pad=files.pad,
        pooling=_pooling(files, known),
        dense=files.dense,
        normalize=files.normalize or (known is not None and known.normalize and not (place / "modules.json").is_file()),
        max_tokens=_max_tokens(files, known, wanted),
        lowercase=files.lowercase,
        prompts=prompts,
        titled={name: text for name, text in known.titled.items() if name in prompts} if known else {},
        default_prompt=files.default_prompt,
        quantize=precision if made else "",
        append=known.append if known else "",
        output_range=_range(wanted.output_range),
        no_float16=gemma.refused["fp16"] if gemma else "",
    )
    return replace(source, reference=None if made or precision == "fp32" else _reference(source, place, known))


def _reference(source: Source, place: Path, known: Known | None) -> Source | None:
    try:
        files = directory.read(place, _graphs(known, "fp32"))
    except ModelError:
        return None  # only the smaller weights are here
    if files.onnx == source.onnx:
        return None
    return replace(source, onnx=files.onnx, weights=files.weights, config=files.config, stated={})


def _pooling(files: ModelFiles, known: Known | None) -> str:
    pooling = files.pooling or (known.pooling if known else "")
    return "" if pooling == "none" else pooling


def _max_tokens(files: ModelFiles, known: Known | None, wanted: Wanted) -> int:
    found = _limit(wanted.max_tokens, files.max_tokens or (known.max_tokens if known else 0))
    if not found:
        raise ModelError(f"{files.directory} does not say how many tokens its model reads: give --max-tokens")
    return found


def _limit(wanted: int, of_model: int) -> int:
    if wanted and of_model:
        return min(wanted, of_model)
    return wanted or of_model


def _range(text: str) -> tuple[float, float] | None:
    """MIN,MAX."""
    if not text:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not -1e6 < low < high < 1e6:
        raise ModelError(f"--output-range is MIN,MAX, the values of the codes 0 and 255, not {text!r}")
    return low, high


# ── a package ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_package(known: Known, wanted: Wanted) -> bool:
    """Whether the installed package's weights are what is asked for: they have 8 bits, and no revision."""
    plain = "@" not in wanted.model and not wanted.onnx_file and wanted.precision in ("auto", "q8")
    return bool(known.package) and plain and find_spec(known.package) is not None


def _package(known: Known, wanted: Wanted) -> Source:
    """MiniLM as the package brings it: a graph alone, its vocabulary is ours."""
    assert known is MINILM
    package = find_spec(known.package)
    assert package is not None and package.origin is not None
    onnx = Path(package.origin).parent / "model.onnx"
    return Source(
        name=known.name,
        onnx=onnx,
        tokenizer=BERT_UNCASED,
        pooling=known.pooling if wanted.pooling == "auto" else wanted.pooling.replace("none", ""),
        normalize=known.normalize,
        max_tokens=_limit(wanted.max_tokens, known.max_tokens),
        output_range=_range(wanted.output_range),
        stated={onnx: MINILM_SHA256},
    )
