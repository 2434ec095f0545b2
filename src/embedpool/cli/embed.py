"""`embedpool embed`: lines in, vectors out. Line i is row i; an empty line is an empty text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from embedpool.client import Client
from embedpool.client.documents import Keywords
from embedpool.errors import BadRequest
from embedpool.shm.layout import DTYPES

LINES_AT_ONCE = 16_384  # of JSON lines: written as they come, so that memory does not grow with the input


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="text files, one text per line (default: stdin, also -)")
    parser.add_argument("-o", "--output", default="-", help="where vectors go (default: stdout)")
    parser.add_argument("--format", choices=("npy", "jsonl"), help="default: npy if the output ends in .npy, else jsonl")
    parser.add_argument("--endpoint", help="the pool (default: EMBEDPOOL_ENDPOINT, or the one of this machine)")
    parser.add_argument("--model", default="", help="a model's name, if the pool has several")
    parser.add_argument("--prompt-name", help="one of the model's prompts (default: its document prompt, if it has one)")
    parser.add_argument("--dim", type=int, default=0, help="the first N dimensions, normalised again")
    parser.add_argument("--no-normalize", action="store_true", help="leave vectors as the model gives them")
    parser.add_argument("--prompt", help="text to put before each line, instead of a prompt of the model")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the vectors (default float32)")
    parser.add_argument("--truncate", choices=("left", "right"), default="right", help="the side that long texts lose")
    parser.add_argument("--no-truncate", action="store_true", help="refuse texts longer than the model reads")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds for each chunk (default 60)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")


def run(arguments: argparse.Namespace) -> int:
    keywords: Keywords = {
        "model": arguments.model,
        "prompt_name": arguments.prompt_name,
        "dim": arguments.dim,
        "normalize": not arguments.no_normalize,
        "truncate": False if arguments.no_truncate else arguments.truncate,
        "prompt": arguments.prompt,
        "dtype": arguments.dtype,
    }
    form = arguments.format or ("npy" if arguments.output.endswith(".npy") else "jsonl")
    progress = not arguments.quiet and sys.stderr.isatty()
    with ExitStack() as stack:
        pool = stack.enter_context(Client(arguments.endpoint))
        lines = _lines(arguments.files or ["-"])
        output = stack.enter_context(_output(arguments.output))
        if form == "npy":
            texts = list(lines)
            vectors = pool.embed_documents(texts, progress=progress, timeout_s=arguments.timeout, **keywords)
            np.save(output, np.ascontiguousarray(vectors))
            return 0
        while texts := list(islice(lines, LINES_AT_ONCE)):
            vectors = pool.embed_documents(texts, progress=progress, timeout_s=arguments.timeout, **keywords)
            _write_lines(output, texts, vectors)
    return 0


def _lines(files: Sequence[str]) -> Iterator[str]:
    for name in files:
        try:
            with open(0 if name == "-" else name, encoding="utf-8", closefd=name != "-") as file:
                for line in file:
                    yield line.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise BadRequest(f"{'stdin' if name == '-' else name} is not UTF-8 text: {error.reason}") from error
        except OSError as error:
            raise BadRequest(f"{name} cannot be read: {error.strerror}") from error


def _output(name: str) -> IO[bytes]:
    if name == "-":
        return open(1, "wb", closefd=False)
    try:
        return Path(name).open("wb")
    except OSError as error:
        raise BadRequest(f"{name} cannot be written: {error.strerror}") from error


def _write_lines(output: IO[bytes], texts: Sequence[str], vectors: Any) -> None:
    for text, vector in zip(texts, vectors, strict=True):
        row = {"text": text, **_as_json(vector)}
        output.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _as_json(vector: Any) -> dict[str, Any]:
    """Codes of int8 and uint8 with what they mean, bits as the bytes that they are packed in, all else as numbers."""
    if vector.dtype.names:
        return {"embedding": vector["values"].tolist(), "scale": float(vector["scale"]), "shift": float(vector["shift"])}
    if vector.dtype.kind in "iu":
        return {"embedding": vector.tolist()}
    return {"embedding": [float(format(x, ".8g")) for x in vector]}
