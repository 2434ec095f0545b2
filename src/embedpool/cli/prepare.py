"""`embedpool prepare`: what the first `serve` of a model does before its workers start, and nothing else."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from embedpool import config
from embedpool.cli.serve import add_settings, settings
from embedpool.models.artifact import prepare
from embedpool.models.resolve import Wanted, resolve

SETTINGS = (*config.OF_MODEL[1:], "cache")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a known model's name, a directory, or a hub id")
    add_settings(parser, SETTINGS)
    parser.add_argument("--json", action="store_true", help="what was made as one JSON document")


def run(arguments: argparse.Namespace) -> int:
    wanted = settings(arguments).wanted_model()
    told = sys.stderr if arguments.json else sys.stdout
    artifact = prepare(resolve(Wanted(**wanted)), Path(wanted["cache"]), lambda what: print(what, file=told, flush=True))
    spec, cosine = artifact.spec, artifact.note["cosine"]
    if arguments.json:
        print(json.dumps({**artifact.note, "path": str(artifact.path)}, indent=2))
        return 0
    alone = ", one text at a time (its quantisation depends on what runs together)" if spec.one_by_one else ""
    print(
        f"{spec.name}: {spec.precision}, {spec.dim} dimensions, {spec.max_tokens} tokens, fingerprint {spec.fingerprint}{alone}"
    )
    if artifact.note["to"] == "fp32":
        print(f"cosine to fp32 on {cosine['texts']} texts: {cosine['mean']:.4f} on average, {cosine['least']:.4f} at worst")
    print(artifact.path)
    return 0
