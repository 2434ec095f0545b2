"""`embedpool models`: which models are known, which are on this machine, and which are prepared for it."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedpool import config
from embedpool.cli.serve import add_settings, settings
from embedpool.models.cache import Artifact, Cache, this_machine
from embedpool.models.registry import KNOWN, Known


def arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--clean", action="store_true", help="remove what is prepared and of no use on this machine any more")
    what.add_argument("--verify", metavar="NAME", help="hold a model's vectors to its published numbers")
    parser.add_argument("--json", action="store_true", help="as one JSON document")
    add_settings(parser, ("cache", "precision", "model_dir", "onnx_file"))


def run(arguments: argparse.Namespace) -> int:
    found = settings(arguments)
    if arguments.verify:
        return _verify(arguments.verify, found, arguments.json)
    store = Cache(found.cache_path())
    if arguments.clean:
        return _clean(store)
    prepared = [(artifact, artifact.stale(this_machine())) for artifact in store.all()]
    if arguments.json:
        print(json.dumps({"known": [_known(known) for known in KNOWN], "prepared": [_row(*row) for row in prepared]}, indent=2))
        return 0
    console = Console(highlight=False)
    console.print(_known_table())
    console.print()
    console.print(_prepared_table(prepared) if prepared else f"nothing is prepared in {store.root}")
    return 0


# ── the list ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _known(known: Known) -> dict[str, Any]:
    places = dict.fromkeys((known.repository, *known.repositories.values(), *(a for a in known.aliases if "/" in a)))
    cached = {repository: size for repository in places if (size := _cached_bytes(repository))}
    package = known.package if known.package and find_spec(known.package) else ""
    return {
        "name": known.name,
        "dim": known.dim,
        "dims": known.dims,
        "max_tokens": known.max_tokens,
        "prompts": list(known.prompts),
        "repository": known.repository,
        "cached_bytes": cached,
        "package": package,
    }


def _cached_bytes(repository: str) -> int:
    """What the hub's cache holds of a repository. Its blobs are plain files; what links to them is not counted."""
    from huggingface_hub.constants import HF_HUB_CACHE

    blobs = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    return sum(blob.stat().st_size for blob in blobs.glob("*")) if blobs.is_dir() else 0


def _row(artifact: Artifact, stale: str) -> dict[str, Any]:
    return {**artifact.note, "path": str(artifact.path), "bytes": artifact.nbytes, "stale": stale}


def _known_table() -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title="known by name", title_justify="left")
    for column in ("model", "dim", "tokens", "on this machine", "repository"):
        right, name = column in ("dim", "tokens"), column == "model"
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=name)
    for known in KNOWN:
        row = _known(known)
        here = [f"{size / 1e6:.0f} MB" for size in row["cached_bytes"].values()]
        here += [f"package {row['package'].replace('_', '-')}"] if row["package"] else []
        table.add_row(known.name, str(known.dim), str(known.max_tokens), ", ".join(here) or "no", known.repository)
    return table


def _prepared_table(prepared: list[tuple[Artifact, str]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title="prepared", title_justify="left")
    for column in ("model", "precision", "MB", "cosine to fp32", "fingerprint", "state"):
        fixed = column in ("precision", "MB", "fingerprint")
        table.add_column(column, justify="right" if column == "MB" else "left", overflow="fold", no_wrap=fixed)
    for artifact, stale in prepared:
        note = artifact.note
        spec, cosine = note.get("spec", {}), note.get("cosine", {})
        worst = f"{cosine['mean']:.4f}, at worst {cosine['least']:.4f}" if note.get("to") == "fp32" else ""
        names = (spec.get("name", artifact.path.name), spec.get("precision", ""), f"{artifact.nbytes / 1e6:.0f}")
        state = f"stale: {stale}" if stale else "ready"
        table.add_row(*(escape(str(cell)) for cell in (*names, worst, spec.get("fingerprint", ""), state)))
    return table


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _clean(store: Cache) -> int:
    if not store.root.is_dir():
        print(f"there is no cache at {store.root}")
        return 0
    with store.locked(lambda: print("waiting for another process that prepares a model", flush=True)):
        stale = [(artifact, why) for artifact in store.all() if (why := artifact.stale(this_machine()))]
        for artifact, why in stale:
            print(f"removed {artifact.path.name}, {artifact.nbytes / 1e6:.0f} MB: {why}")
            store.remove(artifact)
    if not stale:
        print("nothing is stale")
    return 0


def _verify(name: str, found: config.Config, as_json: bool) -> int:
    from embedpool.models.verify import verify

    report = verify(name, found)
    if as_json:
        print(json.dumps(report.to_builtins(), indent=2))
        return 0 if report.passed else 1
    print(f"{report.name}, {report.precision}, fingerprint {report.fingerprint}")
    for row in report.rows:
        print(f"{'pass' if row.passed else 'FAIL'}  {row.what}: at most {row.difference:.2g} off, {row.tolerance:g} allowed")
        for wanted, got in zip(row.wanted, row.found, strict=True):
            print(f"        published {wanted:+.6f}   here {got:+.6f}")
    return 0 if report.passed else 1
