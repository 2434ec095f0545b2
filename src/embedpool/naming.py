"""When two names mean one model: foreign clients say `onnx-community/embeddinggemma-300m-ONNX` or `embeddinggemma-300m`."""

from __future__ import annotations

from embedpool.models.registry import KNOWN


def own_name_of(model: str) -> str:
    """The name under which a known model is served; of any other model, the name itself. Case does not count, nor does a
    revision of a known one. In lower case: for comparing, not for showing."""
    plain = model.partition("@")[0].casefold()
    return next((known.name for known in KNOWN if plain in {name.casefold() for name in known.names}), model).casefold()


def is_same_model(asked: str, served: str) -> bool:
    """Whether a client that asks for `asked` gets what it means from a pool that serves `served`."""
    return own_name_of(asked) == own_name_of(served)
