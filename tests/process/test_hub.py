"""Models from a hub: what is downloaded and what is not, what is used without it, and what each refusal says.

The hub is fixtures/hub.py; everything else is the product as it is run, with caches of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from embedpool import Pool
from embedpool.models.build.family import build
from embedpool.models.build.tail import Tail
from embedpool.models.registry import GEMMA, USUAL_FILES
from tests.fixtures import tiny
from tests.fixtures.hub import Hub, sha256
from tests.fixtures.random_models import MODELS, encoded, weights, write_directory
from tests.process.test_prepare import Machine, unit
from tests.support import kill, launch, wait_until

TINY = "owner/tiny"
TEXTS = {"tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json"}
FP32 = {"onnx/model.onnx", "onnx/model.onnx_data"}
DATA = "onnx/model.onnx_data"
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The directory that owner/tiny is pushed from: a graph with its data beside it, and what nobody needs."""
    place = tiny.directory(tmp_path / "repository", external=True)
    for name in ("README.md", "pytorch_model.bin", "onnx/model_q4f16.onnx", "onnx/model.onnx.md5"):
        (place / name).write_bytes(b"not needed")
    return place


@pytest.fixture
def hub(repository: Path) -> Iterator[Hub]:
    with Hub() as made:
        made.push(TINY, repository)
        yield made


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    """A machine that knows this hub, with nothing on it."""
    return another(hub, tmp_path / "machine")


def another(hub: Hub, root: Path) -> Machine:
    settings = {
        "HF_HOME": str(root / "home"),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    return Machine(root, settings)


def fingerprint(made: dict[str, object]) -> str:
    spec = made["spec"]
    assert isinstance(spec, dict)
    return str(spec["fingerprint"])


# ── what is downloaded ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_is_downloaded_once_and_then_needs_no_hub(hub: Hub, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in machine.environ.items():
        monkeypatch.setenv(name, value)
    with Pool(TINY, workers=1) as pool:
        first = pool.embed(["abc"]).copy()
        assert np.allclose(first, [unit(tiny.TABLE[tiny.ids("abc")].mean(0))], atol=1e-6)
        assert pool.model().name == TINY
    assert hub.fetched == TEXTS | FP32
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with Pool(TINY, workers=1) as pool:
        assert np.array_equal(pool.embed(["abc"]), first)
    assert len(hub.asked) == asked, "offline is offline"
    with hub.away():
        assert machine.prepare(TINY) == machine.prepare(TINY, **OFFLINE)
    # No link leaves the directory of the graph: the runtime refuses external data behind one.
    assert all(not path.is_symlink() for path in machine.cache.rglob("*"))


def test_a_directory_and_a_hub_give_the_same_vectors_and_a_second_start_fetches_nothing(
    hub: Hub, machine: Machine, repository: Path
) -> None:
    made = machine.prepare(TINY)
    asked = len(hub.asked)
    assert fingerprint(machine.prepare(TINY)) == fingerprint(made) == fingerprint(machine.prepare(str(repository)))
    assert all(not ask.file for ask in hub.asked[asked:]), "only lists were asked for"


@pytest.mark.parametrize("precision", ["fp16", "q8", "uint8"])
def test_each_precision_fetches_its_own_files_and_no_others(
    precision: str, hub: Hub, machine: Machine, repository: Path
) -> None:
    names = {each: files[0] for each, files in USUAL_FILES.items()}
    for name in names.values():
        tiny.graph(repository / name, external=True)
    (repository / "model.safetensors").write_bytes(b"not needed where there is a graph")
    hub.push(TINY, repository)
    machine.prepare(TINY, "--precision", precision)
    assert hub.fetched == TEXTS | {names[precision], names[precision] + "_data"}


def test_data_in_many_files_comes_whole(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    place = tiny.directory(tmp_path / "large")
    graph = onnx.load(place / "onnx/model.onnx")
    constants = [graph.graph.initializer[0], numpy_helper.from_array(np.ones(tiny.DIM, np.float32), "scale")]
    graph.graph.initializer.append(constants[1])
    graph.graph.node[0].output[0] = "looked_up"
    graph.graph.node.append(helper.make_node("Mul", ["looked_up", "scale"], ["last_hidden_state"]))
    files = ("model.onnx_data", "model.onnx_data_1")
    for tensor, file in zip(graph.graph.initializer, files, strict=True):
        onnx.external_data_helper.set_external_data(tensor, file)
        (place / "onnx" / file).write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
    (place / "onnx/model.onnx").write_bytes(graph.SerializeToString())
    hub.push("owner/large", place)
    machine.prepare("owner/large")
    assert hub.fetched == TEXTS | {"onnx/model.onnx", *(f"onnx/{file}" for file in files)}


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_without_a_graph_are_fetched_whole_and_built(shards: int, hub: Hub, machine: Machine, tmp_path: Path) -> None:
    place = weights_only(tmp_path / "weights", shards)
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "onnx/model_quantized.onnx", "2_Dense/pytorch_model.bin"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"not needed")
    hub.push("owner/weights", place)
    made = machine.prepare("owner/weights")
    assert fingerprint(made) == fingerprint(machine.prepare(str(place)))
    parts = {file.name for file in place.glob("model-*.safetensors")} | {"model.safetensors.index.json"}
    dense = {"2_Dense/config.json", "2_Dense/model.safetensors"}
    texts = {"config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"}
    assert hub.fetched == texts | dense | ({"model.safetensors"} if shards == 1 else parts)


def weights_only(place: Path, shards: int = 1) -> Path:
    """A small random model as sentence-transformers saves it, with a Dense layer."""
    model = MODELS["gemma-bf16"].of(num_hidden_layers=1)
    write_directory(place, model)
    (place / "tokenizer.json").write_text(tiny.tokenizer())
    if shards > 1:
        (place / "model.safetensors").unlink()
        named = weights(model)
        where = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(named)}
        for file in set(where.values()):
            _shard(place / file, {name: values for name, values in named.items() if where[name] == file}, model.dtype)
        (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return place


def _shard(path: Path, named: dict[str, np.ndarray], dtype: str) -> None:
    header, data = {}, b""
    for name, values in named.items():
        begin, data = len(data), data + encoded(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_repository_of_another_name_is_followed_to_its_new_one(hub: Hub, machine: Machine) -> None:
    hub.renamed["old/name"] = TINY
    assert machine.prepare("old/name")["spec"]["name"] == "old/name"
    assert hub.fetched == TEXTS | FP32


def test_large_files_come_from_another_origin_to_which_no_token_is_told(hub: Hub, machine: Machine) -> None:
    hub.tokens.add("good")
    machine.prepare(TINY, HF_TOKEN="good")
    assert {ask.file for ask in hub.asked if ask.cdn} == FP32
    assert {ask.token for ask in hub.asked if ask.cdn} == {""}
    assert {ask.token for ask in hub.asked if not ask.cdn} == {"good"}


# ── revisions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_main_is_followed_and_what_is_pinned_stays(hub: Hub, machine: Machine, repository: Path) -> None:
    first = hub.push(TINY, repository)
    hub.push(TINY, repository, "v1.0")
    hub.push(TINY, repository, "release/1")
    pinned = (f"{TINY}@v1.0", f"{TINY}@{first}", f"{TINY}@release/1")
    before = fingerprint(machine.prepare(TINY))
    assert {fingerprint(machine.prepare(name)) for name in pinned} == {before}
    changed = bytearray((repository / DATA).read_bytes())
    changed[5] ^= 1
    (repository / DATA).write_bytes(changed)
    hub.push(TINY, repository)
    hub.asked.clear()
    after = fingerprint(machine.prepare(TINY))
    assert after != before
    assert hub.fetched == {DATA}, "what is the same is not fetched again"
    assert {fingerprint(machine.prepare(name)) for name in pinned[:2]} == {before}
    assert fingerprint(machine.prepare(TINY, **OFFLINE)) == after, "what was last seen of main"
    assert fingerprint(machine.prepare(pinned[0], **OFFLINE)) == before


def test_a_revision_that_was_never_fetched_is_not_guessed_offline(hub: Hub, machine: Machine, repository: Path) -> None:
    hub.push(TINY, repository, "v1")
    machine.prepare(TINY)
    assert f"{TINY}@v1 is not on this machine" in machine.refuse(f"{TINY}@v1", **OFFLINE)


# ── interrupted and damaged downloads ────────────────────────────────────────────────────────────────────────────────


def test_a_connection_that_is_cut_is_resumed_where_it_ended(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    place = tiny.directory(tmp_path / "repository", external=True)
    wide = np.zeros((1 << 16, 50), np.float32)  # 13 MB: the hub's library writes, and therefore resumes, in steps of 10
    wide[: len(tiny.TABLE), : tiny.DIM] = tiny.TABLE
    graph = onnx.load(place / "onnx/model.onnx")
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(wide, "table"))
    graph.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 50
    onnx.save(graph, place / "onnx/model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    hub.push(TINY, place)
    hub.fault(file=DATA, cut_after=11 << 20, times=1)
    machine.prepare(TINY)
    assert [ask.range for ask in hub.gets(DATA)] == ["", f"bytes={10 << 20}-"]


def test_a_download_that_fails_says_so_and_the_next_start_fetches_only_the_rest(hub: Hub, machine: Machine) -> None:
    hub.fault(file=DATA, cut_after=300, times=1)
    hub.fault(file=DATA, status=503)
    said = machine.refuse(TINY)
    assert re.search(rf"{TINY} could not be downloaded: .*start again", said), said
    assert not machine.artifacts()
    assert DATA.rpartition("/")[2] in machine.refuse(TINY, **OFFLINE), "it is named what is missing"
    hub.mend()
    hub.asked.clear()
    machine.prepare(TINY)
    assert hub.fetched == {DATA}


def test_a_file_that_came_too_short_is_not_taken_for_whole(hub: Hub, machine: Machine) -> None:
    hub.fault(file=DATA, content=b"short")
    assert "of size 960 but has size 5" in machine.refuse(TINY)
    hub.mend()
    machine.prepare(TINY)


def test_a_start_that_is_killed_in_the_middle_of_a_download_leaves_what_the_next_one_goes_on_with(
    hub: Hub, machine: Machine
) -> None:
    hub.fault(file=DATA, hold_after=300, times=1)
    killed = launch(["prepare", TINY], machine.environ)
    blobs = machine.root / "home" / "hub" / "models--owner--tiny" / "snapshots"
    wait_until(lambda: len([*blobs.rglob("*.json"), *blobs.rglob("*.onnx")]) == 4, 20.0, "the other files to come")
    kill(killed.pid)
    killed.communicate(timeout=30)
    hub.mend()
    hub.asked.clear()
    machine.prepare(TINY)
    assert hub.fetched == {DATA}


def test_a_hub_that_stumbles_once_is_asked_again(hub: Hub, machine: Machine) -> None:
    hub.fault(file="onnx/model.onnx", method="HEAD", status=503, times=1)
    machine.prepare(TINY)


@pytest.mark.parametrize("file", ["onnx/model.onnx", DATA, "model.safetensors", "2_Dense/model.safetensors"])
def test_content_that_is_not_as_the_hub_states_it_is_refused_until_it_is_deleted(
    file: str, hub: Hub, machine: Machine, tmp_path: Path
) -> None:
    if "safetensors" in file:
        hub.push(TINY, weights_only(tmp_path / "weights"))
    right = hub.file(TINY, file)
    wrong = bytearray(right)
    wrong[-20] ^= 1
    hub.fault(file=file, content=bytes(wrong))
    said = machine.refuse(TINY)
    for word in (file, sha256(bytes(wrong))[:12], sha256(right)[:12], "delete"):
        assert word in said
    assert not machine.artifacts()
    hub.mend()
    named = re.search(r"\((/\S+)\)", said)
    assert named is not None
    Path(named[1]).unlink()
    machine.prepare(TINY)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_private_repository_is_had_with_its_token_only(hub: Hub, machine: Machine) -> None:
    hub.tokens = {"reader", "stranger"}
    hub.repositories[TINY].readers = frozenset({"reader"})
    for token in ("", "stranger"):
        said = machine.refuse(TINY, HF_TOKEN=token)
        assert TINY in said and "private" in said and "HF_TOKEN" in said
    machine.prepare(TINY, HF_TOKEN="reader")
    machine.prepare(TINY, **OFFLINE)


@pytest.mark.parametrize("token", ["", "stranger"])
def test_a_licence_that_was_not_accepted_is_said(token: str, hub: Hub, machine: Machine) -> None:
    hub.tokens = {"reader", "stranger"}
    hub.repositories[TINY].licensed = frozenset({"reader"})
    said = machine.refuse(TINY, HF_TOKEN=token)
    assert TINY in said and "licence" in said and "HF_TOKEN" in said
    machine.prepare(TINY, HF_TOKEN="reader")


def test_a_token_that_the_hub_does_not_know_is_said(machine: Machine) -> None:
    assert "HF_TOKEN" in machine.refuse(TINY, HF_TOKEN="expired")


def test_what_the_hub_does_not_have_is_named(hub: Hub, machine: Machine) -> None:
    assert "owner/other" in machine.refuse("owner/other")
    assert re.search(f"{TINY} has no revision v9", machine.refuse(f"{TINY}@v9"))
    with hub.away():
        assert "owner/other is not on this machine and no model hub can be reached" in machine.refuse("owner/other")


def test_a_hub_that_is_down_is_not_needed_for_what_is_here(hub: Hub, machine: Machine) -> None:
    hub.fault(path="/api/", status=503)
    assert "no model hub can be reached" in machine.refuse(TINY)
    hub.mend()
    made = machine.prepare(TINY)
    hub.fault(path="/api/", status=503)
    assert machine.prepare(TINY) == made


def test_a_repository_without_any_usual_file_is_refused_by_what_it_has(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    place = tiny.directory(tmp_path / "other")
    (place / "onnx/model.onnx").rename(place / "onnx/encoder.onnx")
    hub.push("owner/other", place)
    said = machine.refuse("owner/other")
    assert all(
        word in said for word in ("owner/other", "onnx/model.onnx", "model.safetensors", "onnx/encoder.onnx", "--onnx-file")
    )
    assert not hub.fetched
    machine.prepare("owner/other", "--onnx-file", "onnx/encoder.onnx")
    (place / "onnx/encoder.onnx").unlink()
    hub.push("owner/nothing", place)
    assert "no ONNX file at all" in machine.refuse("owner/nothing")


def test_another_precision_than_the_one_that_was_fetched_needs_the_hub(hub: Hub, machine: Machine, repository: Path) -> None:
    tiny.graph(repository / "onnx/model_uint8.onnx")
    hub.push(TINY, repository)
    machine.prepare(TINY)
    said = machine.refuse(TINY, "--precision", "uint8", **OFFLINE)
    assert re.search(f"{TINY} is cached, but not its onnx/model_uint8.onnx, and no model hub can be reached", said)
    machine.prepare(TINY, "--precision", "uint8")


def test_smaller_weights_are_made_offline_from_what_was_fetched(hub: Hub, machine: Machine, tmp_path: Path) -> None:
    place = weights_only(tmp_path / "weights")
    hub.push("owner/weights", place)
    machine.prepare("owner/weights")
    made = machine.prepare("owner/weights", "--precision", "q8", **OFFLINE)
    assert made["to"] == "fp32"
    assert fingerprint(made) == fingerprint(machine.prepare(str(place), "--precision", "q8"))


# ── EmbeddingGemma by its name ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Gemma:
    """A small model of its kind, laid out as onnx-community/embeddinggemma-300m-ONNX is: graphs with their data, tokenizer and
    configuration, and nothing that sentence-transformers would add."""

    place: Path
    dim: int


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Gemma:
    model = MODELS["gemma"].of(num_hidden_layers=2, max_position_embeddings=2048)
    place, source = tmp_path_factory.mktemp("gemma"), tmp_path_factory.mktemp("weights")
    write_directory(source, model)
    (place / "onnx").mkdir()
    graph = build((source / "model.safetensors",), model.config, Tail("mean", (), True), 2048, place / "onnx")
    states = [node.input[0] for node in graph.graph.node if node.op_type == "Pad"][-1]  # the pooling's last step but one
    graph.graph.node.append(helper.make_node("Identity", [states], ["last_hidden_state"]))
    shape = ["batch", "tokens", model.config["hidden_size"]]
    graph.graph.output.insert(0, helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, shape))
    (place / "onnx/model.onnx").write_bytes(graph.SerializeToString())
    _in_float16(graph, place / "onnx")
    (place / "config.json").write_text(json.dumps(model.config))
    (place / "tokenizer.json").write_text(tiny.tokenizer())
    return Gemma(place, model.config["hidden_size"])


def _in_float16(graph: onnx.ModelProto, folder: Path) -> None:
    """model_fp16.onnx: every weight of several dimensions in 16 bits, and a Cast behind it."""
    onnx.load_external_data_for_model(graph, str(folder))
    casts = []
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name + "_half"))
            casts.append(helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT))
    for node in casts:
        graph.graph.node.insert(0, node)
    data = "model_fp16.onnx_data"
    onnx.save(graph, folder / "model_fp16.onnx", save_as_external_data=True, location=data, size_threshold=1024)


@pytest.fixture
def with_gemma(hub: Hub, gemma: Gemma) -> Gemma:
    hub.push(GEMMA.repository, gemma.place)
    hub.asked.clear()
    return gemma


def test_embeddinggemma_by_its_name_has_the_prompts_titles_and_limits_that_its_files_leave_out(
    hub: Hub, machine: Machine, with_gemma: Gemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in machine.environ.items():
        monkeypatch.setenv(name, value)
    with Pool("embeddinggemma-300m", workers=1) as pool:
        card = pool.model()
        assert (card.name, card.dim, card.max_tokens) == (GEMMA.name, with_gemma.dim, 2048)
        assert set(card.prompts) == set(GEMMA.prompts)
        assert set(card.titled) == set(GEMMA.titled)
        plain = pool.embed(["which planet is red"])
        assert np.allclose(np.linalg.norm(plain, axis=1), 1.0, atol=1e-6)
        query = pool.embed_query("which planet is red")
        assert np.array_equal(query, pool.embed(["task: search result | query: which planet is red"])[0])
        assert not np.allclose(query, plain[0], atol=1e-3)
        similar = pool.embed(["which planet is red"], prompt_name="STS")
        assert np.array_equal(similar, pool.embed(["task: sentence similarity | query: which planet is red"]))
        documents = pool.embed_documents(["mars", "venus"])
        assert np.array_equal(documents, pool.embed(["title: none | text: mars", "title: none | text: venus"]))
        titled = pool.embed_documents(["mars"], titles=["planets"])
        assert np.array_equal(titled, pool.embed(["title: planets | text: mars"]))
        small = pool.embed(["mars"], dim=32)
        assert np.allclose(small[0], unit(pool.embed(["mars"])[0][:32]), atol=1e-6)
    assert hub.fetched == {"config.json", "tokenizer.json", "onnx/model.onnx", DATA}


def test_embeddinggemma_in_float16_is_refused_by_its_precision_and_by_its_content(
    hub: Hub, machine: Machine, with_gemma: Gemma
) -> None:
    reason = GEMMA.refused["fp16"]
    for name in GEMMA.names:
        assert reason in machine.refuse(name, "--precision", "fp16")
    assert not hub.asked, "it is known without looking"
    said = machine.refuse("embeddinggemma-300m", "--onnx-file", "onnx/model_fp16.onnx")
    assert reason in said and "model_fp16.onnx" in said
    place = str(with_gemma.place)
    assert reason in machine.refuse("embeddinggemma-300m", "--onnx-file", "onnx/model_fp16.onnx", "--model-dir", place)
    assert reason in machine.refuse(place, "--onnx-file", "onnx/model_fp16.onnx", "--pooling", "mean"), "whatever it is called"
    assert not machine.artifacts()


def test_embeddinggemma_from_a_directory_is_the_one_from_the_hub(hub: Hub, machine: Machine, with_gemma: Gemma) -> None:
    here = machine.prepare("embeddinggemma-300m", "--model-dir", str(with_gemma.place))
    assert not hub.asked
    there = machine.prepare("embeddinggemma-300m")
    assert fingerprint(here) == fingerprint(there)
    assert here["spec"]["prompts"] == GEMMA.prompts
    assert here["path"] == there["path"], "and is prepared once"
    pinned = machine.prepare(f"{GEMMA.repository}@{hub.repositories[GEMMA.repository].refs['main']}")
    assert fingerprint(pinned) == fingerprint(here)


def test_what_is_cached_of_embeddinggemma_is_listed(machine: Machine, with_gemma: Gemma) -> None:
    assert fingerprint(machine.prepare(GEMMA.name)) == fingerprint(machine.prepare(GEMMA.repository))
    listed = json.loads(machine.run("models", "--json").stdout)
    (known,) = [row for row in listed["known"] if row["name"] == GEMMA.name]
    files = [file for file in with_gemma.place.rglob("*") if file.is_file() and "fp16" not in file.name]
    assert known["cached_bytes"] == {GEMMA.repository: sum(file.stat().st_size for file in files)}
    assert known["dims"] == list(GEMMA.dims)
