"""Holds a known model's vectors to its published numbers, through a pool of its own: the whole path is what is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from embedpool.config import OF_MODEL, Config
from embedpool.errors import ModelError
from embedpool.models import registry
from embedpool.models.registry import FirstValues, Similarities
from embedpool.pool import Pool

LOSSY_TOLERANCE = 2e-2  # of 8 and 4 bits: what is published is fp32


@dataclass(frozen=True, slots=True)
class Row:
    """One published number or list of numbers, and what was found here."""

    what: str
    wanted: tuple[float, ...]
    found: tuple[float, ...]
    tolerance: float

    @property
    def difference(self) -> float:
        return float(np.abs(np.array(self.wanted) - np.array(self.found)).max())

    @property
    def passed(self) -> bool:
        return self.difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    precision: str
    fingerprint: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def to_builtins(self) -> dict[str, Any]:
        rows = [{**msgspec.to_builtins(row), "passed": row.passed} for row in self.rows]
        return {**msgspec.to_builtins(self), "rows": rows, "passed": self.passed}


def verify(name: str, config: Config) -> Report:
    """Raises ModelError if the model is not known by name, has no published numbers, or cannot be run."""
    known = registry.find(name)
    if known is None:
        names = ", ".join(each.name for each in registry.KNOWN if each.checks)
        raise ModelError(f"there are no published numbers for {name!r} here, only for {names}")
    if not known.checks:
        raise ModelError(f"{known.name} has no published numbers here that its vectors could be held to")
    wanted = {key: value for key, value in config.wanted_model().items() if key in OF_MODEL and value}
    with Pool(**{**wanted, "model": name}, workers=1, cache=str(config.cache_path())) as pool:
        card = pool.model()
        precision = card.precision
        rows = [_row(check, pool, precision) for check in known.checks]
    return Report(known.name, precision, card.fingerprint, tuple(rows))


def _row(check: FirstValues | Similarities, pool: Pool, precision: str) -> Row:
    tolerance = check.tolerance if precision == "fp32" else max(check.tolerance, LOSSY_TOLERANCE)
    if isinstance(check, FirstValues):
        found = pool.embed([check.text], prompt="")[0][: len(check.values)]
        what = f"first {len(check.values)} values of {check.text!r}"
    else:
        query = pool.embed_query(check.query, dim=check.dim)
        found = pool.embed_documents(check.documents, dim=check.dim) @ query
        what = f"cosines of {check.query!r} to {len(check.documents)} documents at {check.dim or 'all'} dimensions"
    return Row(what, check.values, tuple(map(float, found)), tolerance)
