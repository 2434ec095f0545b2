"""Reads a model directory as sentence-transformers and the hub lay it out. Reads text files only; loads no model.

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

KNOWN_MODULES = {"Transformer", "Pooling", "Dense", "Normalize"}
ONNX_NAMES = ("onnx/model.onnx", "model.onnx")
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_POOLING_NAMES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
LARGEST_MAX_TOKENS = 1_000_000  # tokenizer_config.json writes 1e30 for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """`pooling` None: the files say nothing of it. `dense`: the files ask for layers behind the pooling."""

    directory: Path
    onnx: Path
    tokenizer: Path
    pooling: Pooling | None
    dense: bool
    max_tokens: int | None
    lowercase: bool
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""


def read(directory: Path, onnx_file: str = "", pooling: str = "auto") -> ModelFiles:
    """What the directory says of its model. `onnx_file` (relative) and `pooling` override what would be found."""
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory")
    modules = _modules(directory)
    body = directory / modules.get("Transformer", "")
    sentence = _json(body / "sentence_bert_config.json")
    named, default = _prompts(directory / "config_sentence_transformers.json")
    return ModelFiles(
        directory=directory,
        onnx=_onnx(directory, onnx_file),
        tokenizer=_first(
            f"{directory} has no tokenizer.json: it is needed to turn texts into tokens",
            body / "tokenizer.json",
            directory / "tokenizer.json",
        ),
        pooling=_override(pooling) or _pooling(directory, modules),
        dense=any(kind == "Dense" for kind in modules),
        max_tokens=_max_tokens(directory, body, sentence),
        lowercase=bool(sentence.get("do_lower_case", False)),
        prompts=named,
        default_prompt=default,
    )


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


def _modules(directory: Path) -> dict[str, str]:
    """modules.json as kind -> sub-folder; {} where there is none."""
    path = directory / "modules.json"
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = {str(row["type"]).rsplit(".", 1)[-1]: str(row["path"]) for row in rows}
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    unknown = sorted(set(found) - KNOWN_MODULES)
    if unknown:
        raise ModelError(f"{path} asks for {', '.join(unknown)}; known are {', '.join(sorted(KNOWN_MODULES))}")
    return found


def _first(missing: str, *places: Path) -> Path:
    for path in places:
        if path.is_file():
            return path
    raise ModelError(missing)


def _onnx(directory: Path, onnx_file: str) -> Path:
    if onnx_file:
        return _first(f"{directory} has no {onnx_file}, the graph that --onnx-file names", directory / onnx_file)
    for name in ONNX_NAMES:
        if (directory / name).is_file():
            return directory / name
    others = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.onnx"))
    if len(others) == 1:
        return directory / others[0]
    found = f"several ({', '.join(others)}): choose one with --onnx-file" if others else "none"
    raise ModelError(f"{directory} should have one ONNX file, {' or '.join(ONNX_NAMES)}; it has {found}")


def _override(pooling: str) -> Pooling | None:
    if pooling == "auto":
        return None
    if pooling not in POOLINGS:
        raise ModelError(f"pooling is auto or one of {', '.join(POOLINGS)}, not {pooling!r}")
    return cast(Pooling, pooling)


def _pooling(directory: Path, modules: dict[str, str]) -> Pooling | None:
    path = directory / modules.get("Pooling", "1_Pooling") / "config.json"
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
