"""Reads a model directory as sentence-transformers and the hub lay it out. Reads small text files only; loads no model.

Every error is a ModelError that names the directory, the file and the remedy: a vector that is slightly wrong is worse than
an error, so nothing is guessed that the files do not say.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, cast

from embedpool.errors import ModelError
from embedpool.models.spec import POOLINGS, Pooling

KNOWN_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_POOLING_NAMES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
LARGEST_MAX_TOKENS = 1_000_000  # tokenizer_config.json writes 1e30 for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """`onnx` None: there is no graph, only `weights`. `pooling` None: the files say nothing of it. `dense` are the folders of
    Dense layers in order. `config` is config.json, {} where there is none."""

    directory: Path
    onnx: Path | None
    weights: tuple[Path, ...]
    tokenizer: Path
    pad: str
    config: dict[str, Any]
    pooling: Pooling | None
    dense: tuple[Path, ...]
    normalize: bool
    max_tokens: int | None
    lowercase: bool
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""


def read(directory: Path, graphs: tuple[str, ...], pooling: str = "auto", *, any_graph: bool = False) -> ModelFiles:
    """What the directory says of its model. The first of `graphs` that is there is its graph; with `any_graph`, and without
    weights to build from, so is the only one of another name. `pooling` overrides the files."""
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory")
    modules = _modules(directory)
    body = next((folder for kind, folder in modules if kind == "Transformer"), directory)
    sentence = _json(body / "sentence_bert_config.json")
    named, default = _prompts(directory / "config_sentence_transformers.json")
    onnx = next((directory / name for name in graphs if (directory / name).is_file()), None)
    weights = () if onnx else weight_files(body)
    if onnx is None and not weights:
        onnx = _only_graph(directory, graphs, any_graph)
    return ModelFiles(
        directory=directory,
        onnx=onnx,
        weights=weights,
        tokenizer=_first(
            f"{directory} has no tokenizer.json: it is needed to turn texts into tokens",
            body / "tokenizer.json",
            directory / "tokenizer.json",
        ),
        pad=_pad(_json(body / "tokenizer_config.json") or _json(directory / "tokenizer_config.json")),
        config=_json(body / "config.json"),
        pooling=_override(pooling) or _pooling(directory, modules),
        dense=tuple(folder for kind, folder in modules if kind == "Dense"),
        normalize=any(kind == "Normalize" for kind, _ in modules),
        max_tokens=_max_tokens(directory, body, sentence),
        lowercase=bool(sentence.get("do_lower_case", False)),
        prompts=named,
        default_prompt=default,
    )


def weight_files(directory: Path) -> tuple[Path, ...]:
    """model.safetensors, or the shards that its index names; () where the directory has neither."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return (single,) if single.is_file() else ()
    parts = _json(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise ModelError(f"{index} names no files of weights")
    files = tuple(directory / name for name in sorted(set(parts.values())))
    missing = [file.name for file in files if file.parent != directory or not file.is_file()]
    if missing:
        raise ModelError(f"{index} names {missing[0]}, which is not beside it: download the model again")
    return files


def _prompts(path: Path) -> tuple[dict[str, str], str]:
    """(prompts by name, name of the default one or "")."""
    config = _json(path)
    named, default = config.get("prompts") or {}, config.get("default_prompt_name") or ""
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in named.values()):
        raise ModelError(f"{path}: prompts should be an object of strings")
    if not isinstance(default, str) or (default and default not in named):
        raise ModelError(f"{path}: default_prompt_name is {default!r}, which is none of its prompts")
    return named, default


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, {} where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value


def _modules(directory: Path) -> list[tuple[str, Path]]:
    """modules.json as (kind, folder) in order; [] where there is none."""
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [(str(row["type"]).rsplit(".", 1)[-1], directory / str(row["path"])) for row in rows]
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    unknown = sorted({kind for kind, _ in found} - set(KNOWN_MODULES))
    if unknown:
        raise ModelError(f"{path} asks for {', '.join(unknown)}; known are {', '.join(KNOWN_MODULES)}")
    places = [KNOWN_MODULES.index(kind) for kind, _ in found]
    if places != sorted(places):
        raise ModelError(f"{path} has its modules in an order that is not known here: {', '.join(kind for kind, _ in found)}")
    outside = [folder for _, folder in found if not folder.resolve().is_relative_to(directory.resolve())]
    if outside:
        raise ModelError(f"{path} names {outside[0]}, which is outside of its directory")
    return found


def _pad(tokenizer: dict[str, Any]) -> str:
    """The padding token's name, "" where none is named."""
    named = tokenizer.get("pad_token") or ""
    return str((named.get("content") or "") if isinstance(named, dict) else named)


def _first(missing: str, *places: Path) -> Path:
    for path in places:
        if path.is_file():
            return path
    raise ModelError(missing)


def _only_graph(directory: Path, graphs: tuple[str, ...], any_graph: bool) -> Path:
    others = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.onnx"))
    if any_graph and len(others) == 1:
        return directory / others[0]
    found = f"it has {', '.join(others)} (choose with --onnx-file)" if others else "it has no ONNX file at all"
    if (directory / "pytorch_model.bin").is_file():
        found += "; pytorch_model.bin is not read, because it is a program: save the model again as safetensors"
    raise ModelError(f"{directory} has neither {' nor '.join(graphs)} nor model.safetensors; {found}")


def _override(pooling: str) -> Pooling | None:
    if pooling == "auto":
        return None
    if pooling not in POOLINGS:
        raise ModelError(f"pooling is auto or one of {', '.join(POOLINGS)}, not {pooling!r}")
    return cast(Pooling, pooling)


def _pooling(directory: Path, modules: list[tuple[str, Path]]) -> Pooling | None:
    folder = next((folder for kind, folder in modules if kind == "Pooling"), directory / "1_Pooling")
    path = folder / "config.json"
    config = _json(path)
    if not config:
        return None
    modes = [name for flag, name in _POOLING_FLAGS.items() if config.get(flag)]
    known = set(_POOLING_FLAGS)
    unknown = [key for key, on in config.items() if key.startswith("pooling_mode_") and on and key not in known]
    if isinstance(config.get("pooling_mode"), str):
        name = _POOLING_NAMES.get(config["pooling_mode"])
        modes, unknown = ([name], []) if name else ([], [config["pooling_mode"]])
    if unknown or len(modes) != 1:
        raise ModelError(f"{path} asks for pooling {unknown or modes}: known are mean, cls and last token, one of them")
    if config.get("include_prompt") is False:
        raise ModelError(f"{path} leaves the prompt out of the pooling, which is not supported")
    return cast(Pooling, modes[0])


def _max_tokens(directory: Path, body: Path, sentence: dict[str, Any]) -> int | None:
    """max_seq_length where it is said, else the lesser of what tokenizer and model can take (as sentence-transformers does)."""
    if _is_limit(sentence.get("max_seq_length")):
        return int(sentence["max_seq_length"])
    tokenizer = _json(body / "tokenizer_config.json") or _json(directory / "tokenizer_config.json")
    limits = [tokenizer.get("model_max_length"), _json(body / "config.json").get("max_position_embeddings")]
    return min([int(n) for n in limits if _is_limit(n)], default=None)


def _is_limit(n: Any) -> TypeGuard[float]:
    return isinstance(n, (int, float)) and 0 < n <= LARGEST_MAX_TOKENS
