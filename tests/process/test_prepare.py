"""What is prepared: made once, listed, cleaned, made anew when it is damaged, and served with the values that the graph gives.

Every test has caches of its own. Values are computed a second time here, by numpy, from the tables of fixtures/tiny.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from embedpool import AsyncClient, Client, Pool, dequantized, errors
from embedpool.models.registry import GEMMA
from embedpool.shm.layout import Dtype
from tests.fixtures import tiny
from tests.fixtures.random_models import MODELS, write_directory
from tests.process.test_serve import embedpool
from tests.support import launch, serving

HEAVY = 5.0  # of the text "q": as large as no other, so that it sets the scale of a batch that it is in


def unit(vector: Any) -> np.ndarray:
    """The vector, of length 1."""
    vector = np.asarray(vector, np.float64)
    return np.asarray(vector / np.linalg.norm(vector))


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of one's own, as far as models see it: caches in `root`, empty at first, and further `settings`."""

    root: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def environ(self) -> dict[str, str]:
        return {"EMBEDPOOL_CACHE": str(self.cache), "HF_HOME": str(self.root / "home"), "HF_HUB_OFFLINE": "1", **self.settings}

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return embedpool(*arguments, environ={**self.environ, **environ})

    def prepare(self, *arguments: str, **environ: str) -> dict[str, Any]:
        """What `embedpool prepare --json` says it has made."""
        done = self.run("prepare", *arguments, "--json", **environ)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        return found

    def refuse(self, *arguments: str, **environ: str) -> str:
        """The one sentence with which `embedpool prepare` refuses."""
        done = self.run("prepare", *arguments, **environ)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("embedpool: ")]
        return said

    def artifacts(self) -> list[Path]:
        """Everything in the place of artifacts, whole or not."""
        return sorted((self.cache / "artifacts").glob("*")) + sorted((self.cache / "artifacts").glob(".*"))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.directory(tmp_path / "tiny", external=True)


def random_bert(place: Path) -> Path:
    """A model with matrix products, so that it can be quantised."""
    write_directory(place, MODELS["bert-mean"].of(num_hidden_layers=1))
    (place / "tokenizer.json").write_text(tiny.tokenizer())
    return place


# ── made once ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_prepare_says_what_it_has_made_and_makes_it_once(machine: Machine, model: Path) -> None:
    first = machine.run("prepare", str(model))
    assert first.returncode == 0
    assert first.stderr == ""
    *said, summary, path = first.stdout.splitlines()
    assert [line.split()[0] for line in said] == ["preparing", "prepared"]
    assert re.fullmatch(r"tiny: fp32, 8 dimensions, 16 tokens, fingerprint [0-9a-f]{16}", summary)
    (made,) = machine.artifacts()
    assert path == str(made)
    before = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in [made, *made.iterdir()]}
    second = machine.run("prepare", str(model))
    assert second.stdout.splitlines() == [summary, path]
    assert {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in [made, *made.iterdir()]} == before


def test_what_json_prints_is_one_document(machine: Machine, model: Path) -> None:
    for _ in range(2):
        found = json.loads(machine.run("prepare", str(model), "--json").stdout)
        assert found["path"] == str(machine.artifacts()[0])
        assert {row["path"] for row in found["sources"]} == {
            str(model / name) for name in ("onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json")
        }


def test_two_prepares_at_once_make_one_artifact_and_both_succeed(machine: Machine, tmp_path: Path) -> None:
    place = random_bert(tmp_path / "bert")
    both = [launch(["prepare", str(place)], machine.environ) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    (made,) = machine.artifacts()
    assert all(out.splitlines()[-1] == str(made) for out, _ in said)
    assert sum("prepared bert in" in out for out, _ in said) == 1


def test_serve_uses_what_was_prepared(machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = machine.prepare(str(model))["spec"]["fingerprint"]
    (made,) = machine.artifacts()
    before = made.stat().st_mtime_ns
    with running(str(model), machine, monkeypatch) as pool:
        assert pool.model().fingerprint == fingerprint
    assert [path.stat().st_mtime_ns for path in machine.artifacts()] == [before]


@pytest.mark.parametrize(
    ("name", "how"), [("model.onnx", "cut"), ("tokenizer.json", "gone"), ("artifact.json", "cut"), ("artifact.json", "gone")]
)
def test_a_damaged_artifact_is_made_anew(name: str, how: str, machine: Machine, model: Path) -> None:
    made = machine.prepare(str(model))
    file = Path(made["path"]) / name
    whole = file.read_bytes()
    if how == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    else:
        file.unlink()
    again = machine.prepare(str(model))
    assert again["path"] == made["path"]
    assert again["files"] == made["files"]
    assert file.exists() and (name == "artifact.json" or file.read_bytes() == whole)


@pytest.mark.parametrize("name", ["model.bin", "weights.bin"])
def test_weights_beside_the_graph_are_part_of_what_it_is_whatever_their_name(
    name: str, machine: Machine, tmp_path: Path
) -> None:
    place = tiny.directory(tmp_path / "tiny")
    graph = onnx.load(place / "onnx/model.onnx")
    onnx.save(graph, place / "onnx/model.onnx", save_as_external_data=True, location=name, size_threshold=0)
    before = machine.prepare(str(place))
    data = bytearray((place / "onnx" / name).read_bytes())
    data[5] ^= 1
    (place / "onnx" / name).write_bytes(data)
    after = machine.prepare(str(place))
    assert after["spec"]["fingerprint"] != before["spec"]["fingerprint"]
    assert after["path"] != before["path"]


# ── listed and cleaned ───────────────────────────────────────────────────────────────────────────────────────────────


def listed(machine: Machine) -> dict[str, str]:
    """State by name, as `embedpool models` says."""
    rows = json.loads(machine.run("models", "--json").stdout)["prepared"]
    return {Path(row["path"]).name.rpartition("-")[0]: row["stale"] for row in rows}


def _edit(artifact: Path, **machine: Any) -> None:
    note = json.loads((artifact / "artifact.json").read_text())
    note["machine"] |= machine
    (artifact / "artifact.json").write_text(json.dumps(note))


def test_models_lists_what_is_prepared_and_clean_removes_what_is_of_no_use(machine: Machine, tmp_path: Path) -> None:
    names = ("good", "changed", "gone", "runtime", "processor", "damaged")
    places = {name: tiny.directory(tmp_path / name, files={"1_Pooling/config.json": {"pooling_mode": "cls"}}) for name in names}
    made = {name: Path(machine.prepare(str(place))["path"]) for name, place in places.items()}
    assert listed(machine) == dict.fromkeys(names, "")
    assert machine.run("models", "--clean").stdout == "nothing is stale\n"
    tiny.graph(places["changed"] / "onnx/model.onnx", inputs=("token_type_ids",))
    shutil.rmtree(places["gone"])
    _edit(made["runtime"], runtime="1.0.0")
    _edit(made["processor"], features=["avx"])
    (made["damaged"] / "model.onnx").write_bytes(b"")
    why = listed(machine)
    assert why["good"] == ""
    assert f"made from {places['changed'] / 'onnx/model.onnx'}, which is gone or was changed" == why["changed"]
    assert str(places["gone"]) in why["gone"]
    assert why["runtime"].startswith("for ONNX Runtime 1.0.0, here is ")
    assert why["processor"] == "for another processor"
    assert "damaged" in why["damaged"]
    table = machine.run("models", COLUMNS="200").stdout
    assert len(re.findall("stale: ", table)) == 5 and len(re.findall(r"\bready *$", table, re.MULTILINE)) == 1
    cleaned = machine.run("models", "--clean").stdout
    assert len(re.findall("^removed ", cleaned, re.MULTILINE)) == 5
    assert machine.artifacts() == [made["good"]]
    machine.prepare(str(places["changed"]))
    assert listed(machine) == {"good": "", "changed": ""}


def test_models_without_a_cache_lists_what_is_known(machine: Machine) -> None:
    shown = machine.run("models")
    assert shown.returncode == 0
    assert GEMMA.name in shown.stdout and f"nothing is prepared in {machine.cache}" in re.sub(r"\s+", " ", shown.stdout)
    assert json.loads(machine.run("models", "--json").stdout)["prepared"] == []
    assert machine.run("models", "--clean").stdout == f"there is no cache at {machine.cache}\n"
    assert not machine.cache.exists()


@contextmanager
def read_only(place: Path) -> Iterator[Path]:
    """A directory in which nothing can be made, also by root."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], capture_output=True, check=False)
    if mounted.returncode and os.geteuid() == 0:
        pytest.skip("root without the right to mount")
    if mounted.returncode:
        place.chmod(0o555)
    try:
        yield place
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", place], check=True)


def test_a_cache_that_cannot_be_written_is_one_sentence_that_names_the_setting(machine: Machine, model: Path) -> None:
    machine.root.mkdir()
    (machine.root / "file").write_text("")
    with read_only(machine.root / "closed") as closed:
        for cache in (closed, closed / "deeper", machine.root / "file", machine.root / "file" / "deeper"):
            said = machine.refuse(str(model), "--cache", str(cache))
            assert str(cache) in said and "--cache" in said and "EMBEDPOOL_CACHE" in said
            listing = machine.run("models", "--cache", str(cache))
            assert listing.returncode == 0, listing.stderr


def test_a_cache_that_cannot_be_written_serves_what_is_in_it(machine: Machine, model: Path) -> None:
    made = machine.prepare(str(model))
    bound = machine.root / "bound"
    bound.mkdir()
    command = f"mount --bind {machine.cache} {bound} && mount -o remount,ro,bind {bound}"
    mounted = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    try:
        if mounted.returncode:
            pytest.skip("mounting needs root")
        found = machine.prepare(str(model), "--cache", str(bound))
        assert found["spec"] == made["spec"]
        assert Path(found["path"]).parent.parent == bound
    finally:
        subprocess.run(["umount", bound], capture_output=True, check=False)


# ── smaller weights ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["q8", "q4"])
def test_what_smaller_weights_cost_is_measured_and_said(precision: str, machine: Machine, tmp_path: Path) -> None:
    place = random_bert(tmp_path / "bert")
    said = machine.run("prepare", str(place), "--precision", precision)
    assert said.returncode == 0, said.stderr
    assert f"quantising to {precision}" in said.stdout
    shown = re.search(r"^cosine to fp32 on (\d+) texts: ([\d.]+) on average, ([\d.]+) at worst$", said.stdout, re.MULTILINE)
    assert shown is not None
    made = machine.prepare(str(place), "--precision", precision)
    cosine = made["cosine"]
    assert made["to"] == "fp32"
    assert made["spec"]["precision"] == precision
    assert made["spec"]["one_by_one"] is False
    assert (int(shown[1]), float(shown[2]), float(shown[3])) == (
        cosine["texts"], round(cosine["mean"], 4), round(cosine["least"], 4)
    )  # fmt: skip
    assert 0.9 < cosine["least"] <= cosine["mean"] < 1.0
    whole = machine.prepare(str(place))
    assert whole["to"] == "itself" and whole["cosine"]["least"] > 0.99999
    assert whole["spec"]["fingerprint"] != made["spec"]["fingerprint"]
    assert listed(machine) == {"bert": ""} and len(machine.artifacts()) == 2


# ── what is served ───────────────────────────────────────────────────────────────────────────────────────────────────


class Asks(Protocol):
    """A pool's methods by name, whichever client calls them."""

    def __call__(self, method: str, *arguments: Any, **keywords: Any) -> np.ndarray: ...


@contextmanager
def running(name: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[Pool]:
    for variable, value in machine.environ.items():
        monkeypatch.setenv(variable, value)
    with Pool(name, workers=1, **settings) as pool:
        yield pool


def blocking(pool: Pool) -> Asks:
    def ask(method: str, *arguments: Any, **keywords: Any) -> np.ndarray:
        with Client(pool.endpoint) as client:
            return np.array(getattr(client, method)(*arguments, **keywords))

    return ask


def coroutines(pool: Pool) -> Asks:
    def ask(method: str, *arguments: Any, **keywords: Any) -> np.ndarray:
        async def once() -> np.ndarray:
            async with AsyncClient(pool.endpoint) as client:
                return np.array(await getattr(client, method)(*arguments, **keywords))

        return asyncio.run(once())

    return ask


def ids(text: str) -> list[int]:
    """Token ids without the special ones: letters, and [UNK] for what is none; white space only parts them."""
    return [4 + tiny.LETTERS.index(c) if c in tiny.LETTERS else 1 for c in text if not c.isspace()]


def mean(tokens: Sequence[int]) -> np.ndarray:
    """The vector of tokens between [CLS] and [SEP], before it is normalised."""
    return np.asarray(tiny.TABLE[[2, *tokens, 3]].astype(np.float64).mean(0))


@pytest.mark.parametrize("client", [blocking, coroutines])
def test_prompts_titles_cuts_and_types_are_those_that_numpy_computes(
    client: Callable[[Pool], Asks], machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Modules without a Normalize: normalize=False has something to leave out.
    modules = [{"type": f"st.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"))]
    files = {"sentence_bert_config.json": {"max_seq_length": 32}, "modules.json": modules}
    place = tiny.directory(tmp_path / "tiny", files=files)
    with running(GEMMA.name, machine, monkeypatch, model_dir=str(place)) as pool:
        ask = client(pool)

        def same(found: np.ndarray, *texts: str) -> bool:
            return np.allclose(found, [unit(mean(ids(text)[:30])) for text in texts], atol=1e-6)

        # Texts with what the model reads before them.
        assert same(ask("embed", ["abc", ""]), "abc", "")
        assert same(ask("embed_query", "abc")[None], "task: search result | query: abc")
        assert same(ask("embed_documents", ["abc", "z"]), "title: none | text: abc", "title: none | text: z")
        assert same(ask("embed", ["abc"], prompt_name="STS"), "task: sentence similarity | query: abc")
        assert same(ask("embed", ["abc"], prompt="zz "), "zz abc")
        assert same(ask("embed_query", "abc", prompt="zz ")[None], "zz abc")
        titled = ("title: one {title} | text: abc", "title: none | text: z")  # no title is what the model calls none
        assert same(ask("embed_documents", ["abc", "z"], titles=["one {title}", ""]), *titled)
        assert same(ask("embed", ["abc"], prompt_name="document", titles=["q"]), "title: q | text: abc")
        with pytest.raises(errors.BadRequest):
            ask("embed", ["abc"], prompt_name="query", titles=["q"])
        with pytest.raises(errors.BadRequest):
            ask("embed_documents", ["abc", "z"], titles=["only one"])
        with pytest.raises(errors.UnknownPrompt):
            ask("embed", ["abc"], prompt_name="no such")
        # Texts that are too long.
        long = "a" * 20 + "z" * 20
        assert same(ask("embed", [long]), "a" * 20 + "z" * 10)
        assert same(ask("embed", [long], truncate="right"), "a" * 20 + "z" * 10)
        assert same(ask("embed", [long], truncate="left"), "a" * 10 + "z" * 20)
        with pytest.raises(errors.TextTooLong):
            ask("embed", [long], truncate=False)
        # Vectors in every form.
        whole = mean(ids("abc"))
        for dim in (0, 5):
            plain = whole[: dim or tiny.DIM]
            for normalize in (True, False):
                _types(ask, unit(plain) if normalize else plain, dim, normalize)


def _types(ask: Asks, right: np.ndarray, dim: int, normalize: bool) -> None:
    def found(dtype: str) -> np.ndarray:
        return np.asarray(ask("embed", ["abc"], dim=dim, normalize=normalize, dtype=dtype)[0])

    assert np.allclose(found("float32"), right, atol=1e-6)
    assert found("float16").dtype == np.float16
    assert np.allclose(found("float16"), right, atol=1e-3)
    codes, scale = found("int8"), np.abs(right).max() / 127
    assert np.array_equal(codes["values"], np.rint(right / codes["scale"]))
    assert np.isclose(codes["scale"], scale) and codes["shift"] == 0
    shifted = found("uint8")
    assert np.array_equal(shifted["values"], codes["values"].astype(int) + 128)
    for kind in (codes, shifted):
        assert np.allclose(dequantized(np.array([kind]))[0], right, atol=scale / 2 + 1e-6)
    assert np.array_equal(found("ubinary"), np.packbits(right > 0))
    assert np.array_equal(found("binary"), (np.packbits(right > 0).astype(int) - 128).astype(np.int8))


def test_a_client_that_expects_another_fingerprint_gets_no_vector(
    machine: Machine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = machine.prepare(str(model))["spec"]["fingerprint"]
    wrong = "0" * 16

    async def ask(endpoint: str, expected: str) -> np.ndarray:
        async with AsyncClient(endpoint, expect_fingerprint=expected) as client:
            return np.array(await client.embed(["abc"]))

    with running(str(model), machine, monkeypatch, expect_fingerprint=right) as pool:
        whole = pool.embed(["abc"])
        with Client(pool.endpoint, expect_fingerprint=right) as client:
            assert np.array_equal(client.embed(["abc"]), whole)
        assert np.array_equal(asyncio.run(ask(pool.endpoint, right)), whole)
        with Client(pool.endpoint, expect_fingerprint=wrong) as client:
            for call in (client.embed, client.embed_documents):
                with pytest.raises(errors.WrongFingerprint, match=f"{right}.*{wrong}|{wrong}.*{right}"):
                    call(["abc"])
        with pytest.raises(errors.WrongFingerprint, match=right):
            asyncio.run(ask(pool.endpoint, wrong))
    with running(str(model), machine, monkeypatch, expect_fingerprint=wrong) as pool, pytest.raises(errors.WrongFingerprint):
        pool.embed(["abc"])


# ── graphs that others have quantised ────────────────────────────────────────────────────────────────────────────────


def _with_graph(place: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], output: onnx.ValueInfoProto) -> Path:
    """A tiny directory with this graph behind the table's look-up, which is called `rows`."""
    tiny.directory(place)
    sources = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["rows"]), *nodes], "tiny", sources, [output], tensors
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.save(made, place / "onnx/model.onnx")
    return place


def _uint8(place: Path) -> Path:
    """Mean, times 40, plus 128, as uint8: exporters make it so, for vectors of a quarter of the size."""
    node = helper.make_node
    nodes = [
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["wide"]),
        node("Mul", ["rows", "wide"], ["masked"]),
        node("ReduceSum", ["masked", "tokens"], ["sum"], keepdims=0),
        node("ReduceSum", ["wide", "tokens"], ["count"], keepdims=0),
        node("Div", ["sum", "count"], ["mean"]),
        node("Mul", ["mean", "size"], ["scaled"]),
        node("Add", ["scaled", "middle"], ["shifted"]),
        node("Round", ["shifted"], ["rounded"]),
        node("Clip", ["rounded", "low", "high"], ["clipped"]),
        node("Cast", ["clipped"], ["sentence_embedding"], to=TensorProto.UINT8),
    ]
    scalars = {"size": 40, "middle": 128, "low": 0, "high": 255}
    constants = {"table": tiny.TABLE, "last": np.array([2]), "tokens": np.array([1])} | {
        name: np.float32(value) for name, value in scalars.items()
    }
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.UINT8, ["batch", tiny.DIM])
    return _with_graph(place, nodes, constants, output)


def test_uint8_of_an_unknown_range_is_passed_on_and_nothing_is_made_up(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _uint8(tmp_path / "codes")
    texts = ["abc", "a text of more letters", ""]
    codes = [np.clip(np.rint(mean(ids(text)[:14]) * 40 + 128), 0, 255) for text in texts]
    with running(str(place), machine, monkeypatch) as pool:
        assert pool.model().dtypes == ("uint8",)
        found = pool.embed(texts, dtype="uint8")
        assert np.abs(found["values"].astype(int) - codes).max() <= 1, "numpy may round the other way at a half"
        assert np.isnan(found["scale"]).all() and np.isnan(found["shift"]).all()
        assert np.array_equal(pool.embed(texts, dtype="uint8", dim=3)["values"], found["values"][:, :3])
        others: tuple[Dtype, ...] = ("float32", "float16", "int8", "binary", "ubinary")
        for dtype in others:
            with pytest.raises(errors.BadRequest, match=r"unknown range: ask for dtype uint8, or start .* --output-range"):
                pool.embed(texts, dtype=dtype)
        values = found["values"].copy()
    low, high = -128 / 40, (255 - 128) / 40
    with running(str(place), machine, monkeypatch, output_range=f"{low},{high}") as pool:
        assert "float32" in pool.model().dtypes
        plain = pool.embed(texts, normalize=False)
        assert np.allclose(plain, (values.astype(float) - 128) / 40, atol=1e-6)
        assert np.allclose(plain, [mean(ids(text)[:14]) for text in texts], atol=0.6 / 40)
        assert np.allclose(pool.embed(texts), [unit(row) for row in plain], atol=1e-6)
        assert np.array_equal(pool.embed(texts, dtype="uint8")["values"], values)
        assert np.allclose(dequantized(pool.embed(texts, dtype="uint8")), plain, atol=1e-6)
        assert np.allclose(dequantized(pool.embed(texts, dtype="int8", normalize=False)), plain, atol=0.02)
        assert np.array_equal(pool.embed(texts, dtype="ubinary"), np.packbits(plain > 0, axis=1))
    assert len(machine.artifacts()) == 2, "the range is part of what a vector means"


def _dynamic(place: Path) -> Path:
    """The look-up's rows times a matrix of 8 bits, the rows in 8 bits with one scale for the whole tensor."""
    node = helper.make_node
    nodes = [
        node("DynamicQuantizeLinear", ["rows"], ["codes", "scale", "zero"]),
        node("MatMulInteger", ["codes", "matrix", "zero"], ["product"]),
        node("Cast", ["product"], ["whole"], to=TensorProto.FLOAT),
        node("Mul", ["whole", "scale"], ["last_hidden_state"]),
    ]
    table = tiny.TABLE.copy()
    table[4 + tiny.LETTERS.index("q")] *= HEAVY
    matrix = np.random.default_rng(5).integers(-100, 100, (tiny.DIM, tiny.DIM), np.int8)
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", tiny.DIM])
    return _with_graph(place, nodes, {"table": table, "matrix": matrix}, output)


def test_a_text_has_the_same_bytes_beside_one_that_would_change_its_quantisation(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = _dynamic(tmp_path / "dynamic")
    texts = ["abc", "abd", "qqq", "xyz"]
    session = onnxruntime.InferenceSession(str(place / "onnx/model.onnx"), providers=["CPUExecutionProvider"])

    def plain(*rows: str) -> np.ndarray:
        tokens = np.array([tiny.ids(row) for row in rows])
        (states,) = session.run(None, {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
        return np.asarray(states[0])

    assert not np.array_equal(plain("abc"), plain("abc", "qqq")), "the neighbour does change it, if they run together"
    made = machine.prepare(str(place))
    assert made["spec"]["one_by_one"] is True
    said = machine.run("prepare", str(place)).stdout
    assert "one text at a time" in said
    with running(str(place), machine, monkeypatch) as pool:
        alone = [pool.embed([text])[0].copy() for text in texts]
        for row, vector in enumerate(pool.embed(texts)):
            assert vector.tobytes() == alone[row].tobytes()
        assert np.array_equal(pool.embed_documents(texts * 40), np.stack(alone * 40))
        assert np.allclose(alone[0], unit(plain("abc").mean(0)), atol=1e-6)


# ── the command line ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    """The endpoint of a pool of the echo model."""
    with serving("--model", "echo:16") as server:
        yield server.endpoint


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_embed_writes_every_type_as_npy_and_as_json_lines(dtype: Dtype, echo: str, tmp_path: Path) -> None:
    with Client(echo) as client:
        right = np.array(client.embed(["one", "two"], dtype=dtype))
        plain = np.array(client.embed(["one", "two"]))
    out = tmp_path / "out.npy"
    done = embedpool("embed", "-o", str(out), "--dtype", dtype, "--endpoint", echo, text="one\ntwo\n")
    assert done.returncode == 0, done.stderr
    found = np.load(out)
    assert found.tobytes() == right.tobytes() and found.dtype.names == right.dtype.names
    done = embedpool("embed", "--dtype", dtype, "--endpoint", echo, text="one\ntwo\n")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["one", "two"]
    for row, vector, exact in zip(rows, right, plain, strict=True):
        if dtype in ("int8", "uint8"):
            assert row["embedding"] == vector["values"].tolist()
            assert np.allclose(np.array(row["embedding"]) * row["scale"] + row["shift"], exact, atol=row["scale"])
        else:
            assert np.allclose(row["embedding"], vector.astype(float), atol=1e-7)
        if dtype not in ("float32", "float16"):
            assert all(isinstance(value, int) for value in row["embedding"]), "codes and bits are whole numbers"
