"""What bench/peers.py and bench/limit.py compute and show, of made-up measurements; no peer is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import limit  # noqa: E402 - found by the path that is set above
import peers_results  # noqa: E402
import render_peers  # noqa: E402
from peers_install import REQUIREMENTS, SCRIPTS, last_words  # noqa: E402
from peers_table import OURS, PEERS, Peer, chosen  # noqa: E402
from peers_visit import Seen  # noqa: E402

COST = limit.Cost(fixed=5e6, per_token=20e6, per_pair=10_000, weights=10_000_000)
RATES = limit.Rates(2, {"fp32": 100e9, "int8": 400e9}, {40: 40e9, 400: 8e9})
GIVEN = peers_results.Given([100, 300], [100, 300, 500], [10, 20, 30], COST, RATES)
POOL = Peer("embedpool, fp32", "embed_pool", OURS, batches=(0,), server=True)
UNIT = np.eye(2, dtype=np.float32)


def seen(bulk_s: float, query_ms: float = 5.0, vectors: np.ndarray | None = None) -> Seen:
    return Seen(1.5, bulk_s, 2, [query_ms] * 9 + [50.0], [6.0], [9.0], 12.0, {"lib": "1.0"}, {8: 3.0, 32: 2.0}, 123.4, vectors)


# ── the limit ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_three_lengths_give_back_what_grows_with_the_tokens_and_with_their_square() -> None:
    found = limit.cost_of([(tokens, COST.ops(tokens)) for tokens in limit.COUNTED], COST.weights)
    assert (found.fixed, found.per_token, found.per_pair) == pytest.approx((COST.fixed, COST.per_token, COST.per_pair))


def test_a_short_query_takes_as_long_as_its_weights_are_read_and_a_long_one_as_long_as_it_is_computed() -> None:
    assert limit.least_s(COST, 1, "fp32", RATES) == pytest.approx(40e6 / 40e9)
    assert limit.least_s(COST, 200, "fp32", RATES) == pytest.approx(COST.ops(200) / 100e9)


def test_weights_are_read_at_the_rate_of_an_array_of_about_their_size() -> None:
    assert RATES.reading(30e6) == 40e9
    assert RATES.reading(300e6) == 8e9


def test_weights_of_four_bits_are_half_as_many_bytes_as_those_of_eight_and_computed_alike() -> None:
    assert RATES.rate("int4") == RATES.rate("int8")
    slow = limit.Rates(1, RATES.ops, {40: 1e9})
    halves = [limit.least_s(COST, 1, precision, slow) for precision in ("int8", "int4")]
    assert halves == pytest.approx([10e6 / 1e9, 5e6 / 1e9])


def test_many_texts_take_as_long_as_all_their_operations() -> None:
    assert limit.least_bulk_s(COST, [100, 300], "fp32", RATES) == pytest.approx((COST.ops(100) + COST.ops(300)) / 100e9)


def test_a_precision_that_was_not_measured_has_no_limit() -> None:
    assert limit.least_s(COST, 10, "bf16", RATES) is None
    assert limit.least_bulk_s(COST, [10], "bf16", RATES) is None


def test_the_best_library_of_each_precision_counts() -> None:
    assert limit.fastest({"a": {"fp32": 1.0, "int8": 9.0}, "b": {"fp32": 2.0}}) == {"fp32": 2.0, "int8": 9.0}


def test_operations_are_counted_from_the_shapes_of_a_run(tmp_path: Path) -> None:
    words = numpy_helper.from_array(np.ones((7, 8), np.float32), "words")
    weights = numpy_helper.from_array(np.ones((8, 24), np.float32), "weights")
    thirds = numpy_helper.from_array(np.array([8, 8, 8], np.int64), "thirds")
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "weights"], ["qkv"]),
        helper.make_node("Split", ["qkv", "thirds"], ["q", "k", "v"], axis=2),
        helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=2),
        helper.make_node("Identity", ["attention_mask"], ["mask"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "small", inputs, outputs, [words, weights, thirds])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    found = limit.cost(str(tmp_path / "model.onnx"))
    assert (found.fixed, found.per_token, found.per_pair) == pytest.approx((0, 2 * 8 * 24, 4 * 8))
    assert found.weights == 8 * 24
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_holds_the_median_of_the_visits_and_each_visit_s_own() -> None:
    row = peers_results.row(POOL, [seen(4.0, vectors=UNIT), seen(1.0), seen(2.0)], GIVEN, UNIT)
    assert row["bulk_tokens_per_s"] == 200
    assert row["bulk_tokens_per_s_of_each_repeat"] == [100, 400, 200]
    assert row["bulk_texts_per_s"] == 1.0
    assert (row["batch"], row["pss_mb"]) == (32, 123)
    assert row["query_ms"] == {"p50": 5.0, "p95": 50.0, "p99": 50.0, "max": 50.0}
    assert (row["open_ms"]["p95"], row["beside_ms"]["p95"], row["bulk_texts_per_s_beside_queries"]) == (6.0, 9.0, 12.0)


def test_a_share_of_the_limit_is_the_least_time_to_the_time_taken() -> None:
    row = peers_results.row(POOL, [seen(2.0, query_ms=10.0)], GIVEN, None)
    least_bulk, least_query = limit.least_bulk_s(COST, [100, 300], "fp32", RATES), limit.least_s(COST, 20, "fp32", RATES)
    assert least_bulk is not None and least_query is not None
    assert row["of_limit"]["bulk"] == pytest.approx(least_bulk / 2.0, abs=0.001)
    assert row["of_limit"]["query"] == pytest.approx(least_query / 0.010, abs=0.001)


def test_without_a_rate_of_the_precision_there_is_no_share() -> None:
    peer = Peer("a", "st", "sentence-transformers", precision="bf16")
    assert peers_results.row(peer, [seen(2.0)], GIVEN, None)["of_limit"] == {"bulk": None, "query": None}


@pytest.mark.parametrize(("turned", "same"), [(0.01, True), (0.1, False)])
def test_vectors_are_the_same_only_if_the_least_alike_is(turned: float, same: bool) -> None:
    vectors = UNIT.copy()
    vectors[1] = (turned, 1.0)
    row = peers_results.row(POOL, [seen(1.0, vectors=vectors)], GIVEN, UNIT)
    assert row["cosine"]["same"] is same


def test_vectors_of_another_shape_are_said_to_be_so() -> None:
    row = peers_results.row(POOL, [seen(1.0, vectors=np.ones((2, 3), np.float32))], GIVEN, UNIT)
    assert "(2, 3)" in row["cosine"]["error"]


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result file with the pool, a library, one that failed, and the loops."""
    library = Peer("library", "st", "sentence-transformers")
    rows: dict[str, Any] = {
        POOL.name: peers_results.row(POOL, [seen(2.0, vectors=UNIT)], GIVEN, UNIT),
        library.name: peers_results.row(library, [seen(4.0, vectors=UNIT)], GIVEN, UNIT),
        "broken": {"error": "it ended: no | such\nmodule"},
        "loops": peers_results.of_loops([210.0, 190.0, 200.0], GIVEN),
    }
    results = {
        "model": "M",
        "texts": 2,
        "tokens": 400,
        "cores": 2,
        "repeats": 1,
        "queries_per_s": 50.0,
        "took_s": 9,
        "peers": rows,
    }
    machine = {"processor": "P", "cores": 2, "kernel": "6.1-x", "python": "3.11"}
    found = {"results": results, "machine": machine, "date": "2026-01-01", "commit": "abc"}
    (tmp_path / "peers.json").write_text(json.dumps(found))
    monkeypatch.setattr(render_peers, "RESULTS", tmp_path)
    return tmp_path


def cells(page: str, name: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("page", [render_peers.peers, render_peers.beside_others])
def test_a_peer_that_failed_stands_in_the_table_with_its_error_and_without_numbers(page: Any) -> None:
    found = cells(page(), "broken")
    assert found[0] == "not measured: it ended: no / such module"
    assert set(found[1:]) == {""}


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("page", [render_peers.peers, render_peers.beside_others])
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page: Any) -> None:
    table = [line for line in page().splitlines() if line.startswith("|")]
    assert len(table) == 6
    assert len({line.count("|") for line in table}) == 1


@pytest.mark.usefixtures("measured")
def test_the_short_table_compares_each_with_the_pool() -> None:
    page = render_peers.beside_others()
    assert cells(page, "library")[:2] == ["100", "2.00"]
    assert cells(page, POOL.name)[:2] == ["200", "1.00"]
    assert cells(page, POOL.name)[3] == "6.0, 9.0 ms"


def test_what_was_not_measured_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_peers, "RESULTS", tmp_path)
    for page in (render_peers.peers, render_peers.beside_others, render_peers.limits):
        assert page().startswith("Not measured yet")


# ── the table of peers and their scripts ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_every_script_of_a_peer_compiles(script: Path) -> None:
    compile(script.read_text(), str(script), "exec")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_has_a_script_and_an_environment_of_pinned_versions(peer: Peer) -> None:
    assert (SCRIPTS / f"{peer.script}.py").is_file()
    if peer.env != OURS:
        wanted = [line for line in (REQUIREMENTS / f"{peer.env}.txt").read_text().splitlines() if not line.startswith("#")]
        assert wanted and all("==" in line for line in wanted)


def test_peers_are_chosen_by_model_and_by_a_word_of_their_name() -> None:
    assert [peer.name for peer in chosen("gemma", ("Q8", "bf16"))] == [
        "embedpool, bf16 (OpenVINO)",
        "embedpool, q8",
        "sentence-transformers, PyTorch bf16",
        "OpenVINO, bf16",
    ]
    assert len({peer.name for peer in PEERS}) == len(PEERS)


def test_the_last_line_that_names_an_error_is_why_a_program_failed() -> None:
    assert last_words("loading\nValueError: no weights\n  at the end\n\n") == "ValueError: no weights"
    assert last_words("one\ntwo\n") == "two"
    assert last_words("\n") == "it said nothing"
