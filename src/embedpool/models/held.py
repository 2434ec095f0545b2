"""What a prepared model is held to: the vectors of the graph that it was made from. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedpool.errors import ModelError
from embedpool.models.resolve import Source

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAME = 0.9999  # cosine of the optimised graph to the one it was made from: only rounding may differ
# The same where a provider computes in 16 bits. Real weights give 0.9998 and more; an operator that it reads wrongly gave 0.88.
ALIKE = 0.99


def hold_to(cosines: NDArray[np.float64], source: Source) -> None:
    """Raises ModelError if what computes the vectors computes something else than the graph says."""
    least = ALIKE if source.compute.lossy else SAME
    if cosines.min() >= least:
        return
    own = source.compute.provider.name == "cpu"
    what = f"ONNX Runtime's optimised form of {source.name}" if own else f"{source.compute.provider.runtime} on {source.name}"
    raise ModelError(
        f"{what} gives other vectors than the graph it was made from (cosine {cosines.min():.5f}): this version of it cannot"
        f" serve the model{'' if own else '; use --provider cpu'}"
    )
