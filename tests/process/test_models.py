"""Models from a directory and a hub: found, read as their files say, and refused by the name of the file that is wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from embedpool import Pool
from embedpool.errors import ModelError
from tests.fixtures import tiny
from tests.process.test_serve import embedpool

PROMPTS = {"prompts": {"query": "q ", "document": ""}, "default_prompt_name": None}


def unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_directory_is_pooled_as_its_files_say_with_weights_inside_or_beside_the_graph(pooling: str, tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "tiny", pooling, external=pooling != "cls")
    texts = ["abc", "", "a text of more than sixteen letters", "z"]
    states = [tiny.TABLE[tiny.ids(text)] for text in texts]
    pooled = {"mean": [s.mean(0) for s in states], "cls": [s[0] for s in states], "last": [s[-1] for s in states]}[pooling]
    with Pool(str(model), workers=1) as pool:
        assert np.allclose(pool.embed(texts), [unit(vector) for vector in pooled], atol=1e-6)
        assert np.allclose(pool.embed(["abc"], normalize=False), pooled[:1], atol=1e-6)
        assert json.loads(pool.status())["model"]["max_tokens"] == 16


def test_a_graph_that_pools_is_read_by_the_name_of_its_output(tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "tiny", pooled=True, inputs=("token_type_ids", "position_ids"))
    with Pool(str(model), workers=1) as pool:
        assert np.allclose(pool.embed(["abc"]), [unit(tiny.TABLE[2])], atol=1e-6)


def test_prompts_come_from_the_models_files(tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "tiny", files={"config_sentence_transformers.json": PROMPTS})
    with Pool(str(model), workers=1) as pool:
        assert np.array_equal(pool.embed_query("abc"), pool.embed(["q abc"])[0])
        assert np.array_equal(pool.embed_documents(["abc"]), pool.embed(["abc"]))
        assert not np.array_equal(pool.embed_query("abc"), pool.embed(["abc"])[0])


def test_a_default_prompt_is_applied_to_all_that_names_none(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "q ", "none": ""}, "default_prompt_name": "query"}
    model = tiny.directory(tmp_path / "tiny", files={"config_sentence_transformers.json": prompts})
    with Pool(str(model), workers=1) as pool:
        assert np.array_equal(pool.embed(["abc"]), pool.embed(["abc"], prompt_name="query"))
        assert not np.array_equal(pool.embed(["abc"]), pool.embed(["abc"], prompt_name="none"))


def test_the_fingerprint_changes_with_weights_and_with_use(tmp_path: Path) -> None:
    def of(model: Path, **settings: object) -> str:
        with Pool(str(model), workers=1, **settings) as pool:
            return str(json.loads(pool.status())["model"]["fingerprint"])

    model = tiny.directory(tmp_path / "tiny", external=True)
    first = of(model)
    assert first == of(model)
    assert first != of(model, max_tokens=8)
    assert first != of(model, pooling="cls")
    data = model / "onnx" / "model.onnx_data"
    changed = bytearray(data.read_bytes())
    changed[5] ^= 1
    data.write_bytes(changed)
    assert first != of(model)


def _no_data(model: Path) -> None:
    (model / "onnx" / "model.onnx_data").unlink()


def _cut_data(model: Path) -> None:
    data = model / "onnx" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:100])


def _no_pooling(model: Path) -> None:
    (model / "1_Pooling" / "config.json").unlink()


def _no_limit(model: Path) -> None:
    (model / "sentence_bert_config.json").unlink()


def _cut_graph(model: Path) -> None:
    graph = model / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:200])


def _unknown_input(model: Path) -> None:
    tiny.graph(model / "onnx" / "model.onnx", inputs=("past_key_values",))


def _bad_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("breaks", "names"),
    [
        (_no_data, "model.onnx_data"),
        (_cut_data, "model.onnx"),
        (_no_pooling, "1_Pooling/config.json.*--pooling"),
        (_no_limit, "--max-tokens"),
        (_cut_graph, "model.onnx"),
        (_unknown_input, "past_key_values"),
        (_bad_tokenizer, "tokenizer.json"),
    ],
)
def test_an_incomplete_or_damaged_directory_names_its_file(breaks: object, names: str, tmp_path: Path) -> None:
    model = tiny.directory(tmp_path / "tiny", external=True)
    breaks(model)  # type: ignore[operator]
    with pytest.raises(ModelError, match=names):
        Pool(str(model), workers=1).start()


# ── a hub on this machine ────────────────────────────────────────────────────────────────────────────────────────────


class Hub(BaseHTTPRequestHandler):
    """The paths of a model hub that a download asks for."""

    root: Path
    asked: list[str]
    SHA = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        type(self).asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        files = [file for file in sorted(self.root.rglob("*")) if file.is_file()]
        names = [str(file.relative_to(self.root)) for file in files]
        if path.startswith("/api/models/owner/tiny/tree/"):
            tree = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in zip(names, files, strict=True)
            ]
            self._send(200, json.dumps(tree).encode(), {"content-type": "application/json"}, body)
        elif path.startswith("/api/models/owner/tiny"):
            listing = {"id": "owner/tiny", "sha": self.SHA, "siblings": [{"rfilename": name} for name in names]}
            self._send(200, json.dumps(listing).encode(), {"content-type": "application/json"}, body)
        elif path.startswith(f"/owner/tiny/resolve/{self.SHA}/"):
            file = self.root / path.partition(self.SHA + "/")[2]
            found = file.read_bytes()
            self._send(200, found, {"etag": f'"{hash(found) & 0xFFFFFFFFFF:x}"', "x-repo-commit": self.SHA}, body)
        else:
            self._send(404, b"{}", {"x-error-code": "RepoNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub with the repository owner/tiny."""
    Hub.root = tiny.directory(tmp_path / "repository", external=True)
    (Hub.root / "pytorch_model.bin").write_bytes(b"not needed")
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_id_is_downloaded_once_and_served_without_the_hub_afterwards(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("EMBEDPOOL_CACHE", str(tmp_path / "cache"))
    with Pool("owner/tiny", workers=1) as pool:
        first = pool.embed(["abc"]).copy()
        assert np.allclose(first, [unit(tiny.TABLE[tiny.ids("abc")].mean(0))], atol=1e-6)
    assert not any("pytorch_model.bin" in line for line in Hub.asked)
    assert any("model.onnx_data" in line for line in Hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(Hub.asked)
    with Pool("owner/tiny", workers=1) as pool:
        assert np.array_equal(pool.embed(["abc"]), first)
    assert len(Hub.asked) == asked
    # No link leaves the directory of the graph: the runtime refuses external data behind one.
    assert all(not path.is_symlink() for path in (tmp_path / "cache").rglob("*"))


def test_what_the_hub_does_not_have_is_one_sentence(hub: str, tmp_path: Path) -> None:
    environ = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub}
    done = embedpool("serve", "--model", "owner/other", "--runtime-dir", str(tmp_path / "run"), environ=environ)
    assert done.returncode == 2
    assert "owner/other" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
