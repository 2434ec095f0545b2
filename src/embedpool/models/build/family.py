"""Which module builds which architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from embedpool.errors import ModelError
from embedpool.models.build import bert, decoder
from embedpool.models.build.safetensors import Weights
from embedpool.models.build.tail import Tail, vectors
from embedpool.models.build.writer import DATA, Writer

# Not part of what turns tokens into states: heads of other tasks, and tables that can be computed.
_NOT_NEEDED = ("pooler.", "cls.", "lm_head.", "classifier.", "position_ids", "rotary_emb.inv_freq")


def build(files: tuple[Path, ...], config: dict[str, Any], tail: Tail, max_tokens: int, directory: Path) -> onnx.ModelProto:
    """The graph, its data written into `directory`. Raises ModelError for an architecture that is not known here, naming it,
    and for weights that do not fit the configuration."""
    kind = str(config.get("model_type") or "")
    if kind not in (*bert.TYPES, *decoder.TYPES):
        raise ModelError(unknown(kind, config, files[0].parent))
    weights = Weights(files)
    try:
        opened = (directory / DATA).open("wb")
    except OSError as error:
        raise ModelError(f"{directory / DATA} cannot be written: {error.strerror}") from error
    with opened as data:
        g = Writer(data)
        try:
            states = bert.states(g, weights, config) if kind in bert.TYPES else decoder.states(g, weights, config, max_tokens)
            output, width = vectors(g, states, int(config["hidden_size"]), tail)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            raise ModelError(f"{files[0].parent}/config.json does not describe its weights: {error!r}") from error
        except OSError as error:
            raise ModelError(f"{directory / DATA} cannot be written: {error.strerror}") from error
        left = [name for name in weights.unread() if not any(part in name for part in _NOT_NEEDED)]
        if left:
            raise ModelError(
                f"{files[0].parent} has weights that a {kind} model does not use ({', '.join(left[:3])}…): it is of another"
                f" architecture than its config.json says. Export it to ONNX"
            )
        return g.model(output, width)


def unknown(kind: str, config: dict[str, Any], directory: Path) -> str:
    name = ", ".join(map(str, config.get("architectures") or [])) or kind or "no architecture"
    return (
        f"{directory} is of the architecture {name} ({kind or 'no model_type'}), and has no ONNX file. embedpool builds"
        f" {', '.join((*bert.TYPES, *decoder.TYPES))}; export it with: optimum-cli export onnx --task feature-extraction"
        f" --model {directory} {directory}/onnx"
    )
