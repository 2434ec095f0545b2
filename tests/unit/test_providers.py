"""Who asks for a provider that is not there must hear what to install, on any machine; and what computes in another way must
never pass for the vectors that a database already holds.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedpool import config
from embedpool.errors import ModelError
from embedpool.models import offered as looking
from embedpool.models import providers, resolve
from embedpool.models.artifact import fingerprint_of
from embedpool.models.held import hold_to
from embedpool.models.providers import BY_NAME, CPU, NAMES, Compute, Offered, choose, parse
from embedpool.models.resolve import Source, computed_by
from embedpool.models.spec import ModelSpec

AMX = frozenset({"avx512f", "amx_bf16", "avx512_bf16"})
PLAIN = Offered("1.32.0", ("AzureExecutionProvider", "CPUExecutionProvider"), {}, AMX)
PLUGGED = replace(PLAIN, plugins={"onnxruntime-ep-openvino": "1.8.1"})
WITH_GPU = replace(PLAIN, runtime=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"))
SOURCE = Source(
    name="tiny",
    onnx=Path("/m/model.onnx"),
    tokenizer="/m/tokenizer.json",
    pooling="mean",
    normalize=True,
    max_tokens=64,
    prompts={"query": "q "},
)
DIGESTS = {Path("/m/model.onnx"): "a" * 64, Path("/m/tokenizer.json"): "b" * 64}


def _refused(name: str, options: str, offered: Offered, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose(name, options, offered)
    for word in words:
        assert word in caught.value.message, caught.value.message
    assert "\n" not in caught.value.message


# ── which there are ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_setting_takes_every_provider_that_is_known_and_no_other() -> None:
    row = next(row for row in config.rows() if row.name == "provider")
    assert row.metadata["choices"] == NAMES
    assert row.default == "cpu"


@pytest.mark.parametrize(
    ("name", "offered", "words"),
    [
        ("openvino", PLAIN, ["not installed", "embedpool[openvino]"]),
        ("cuda", PLAIN, ["1.32.0", "CPUExecutionProvider", "pip install onnxruntime-gpu", "takes its place", "Jetson"]),
        ("tensorrt", PLAIN, ["onnxruntime-gpu"]),
        ("tensorrt", replace(WITH_GPU, runtime=("CUDAExecutionProvider",)), ["CUDAExecutionProvider", "onnxruntime-gpu"]),
        ("coreml", PLAIN, ["macOS"]),
        ("abacus", PLUGGED, ["cpu, openvino, cuda", "'abacus'"]),
    ],
)
def test_a_provider_that_is_not_there_is_refused_with_what_brings_it(name: str, offered: Offered, words: list[str]) -> None:
    _refused(name, "", offered, *words)


def test_a_provider_that_is_there_is_taken_with_its_options() -> None:
    assert choose("cpu", "", PLAIN) == CPU
    assert choose("cuda", "gpu_mem_limit=1000, arena_extend_strategy=kSameAsRequested", WITH_GPU) == Compute(
        BY_NAME["cuda"], {"gpu_mem_limit": "1000", "arena_extend_strategy": "kSameAsRequested"}
    )
    assert choose("openvino", "", PLUGGED) == Compute(BY_NAME["openvino"], {"precision": "bf16"}, "1.8.1")


@pytest.mark.parametrize("text", ["precision", "=bf16", "precision=", "a=1,b", "a=1;b=2,c"])
def test_options_that_are_not_pairs_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="key=value,key=value"):
        parse(text)


def test_options_are_pairs_with_commas_between() -> None:
    assert parse("") == {}
    assert parse("a=1, b=x=y,") == {"a": "1", "b": "x=y"}
    with pytest.raises(ModelError, match="a twice"):
        parse("a=1,a=2")


def test_options_that_nobody_would_read_are_refused() -> None:
    _refused("cpu", "precision=bf16", PLUGGED, "--provider cpu", "precision=bf16")
    _refused("openvino", "precison=bf16", PLUGGED, "'precison'", "precision=bf16|f32|f16")
    _refused("openvino", "precision=int8", PLUGGED, "bf16, f32, f16", "'int8'")
    _refused("cuda", "device_id=1", WITH_GPU, "device_id", "each worker")


# ── openvino's precision ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("precision", "flags", "fits"),
    [
        ("bf16", {"amx_bf16"}, True),
        ("bf16", {"avx512_bf16"}, True),
        ("bf16", {"avx512f", "avx2", "amx_int8"}, False),
        ("f16", {"avx512_fp16"}, True),
        ("f16", {"amx_bf16"}, False),
        ("f32", set(), True),
    ],
)
def test_a_precision_that_the_processor_would_not_compute_in_is_refused(precision: str, flags: set[str], fits: bool) -> None:
    offered = replace(PLUGGED, flags=frozenset(flags))
    if fits:
        assert choose("openvino", f"precision={precision}", offered).options == {"precision": precision}
    else:
        _refused("openvino", f"precision={precision}", offered, "does not compute in " + precision, "precision=f32")


def test_bf16_that_was_not_even_asked_for_is_refused_where_it_would_be_f32() -> None:
    _refused("openvino", "", replace(PLUGGED, flags=frozenset({"avx2"})), "amx_bf16 nor avx512_bf16", "precision=f32")


def test_openvinos_own_properties_are_passed_on_and_decide_with_the_pools() -> None:
    pytest.importorskip("onnxruntime")
    from embedpool.models.session import openvino

    given = choose("openvino", "precision=f32,SNIPPETS_MODE=DISABLE", PLUGGED).options
    assert openvino(given, 3, pinned=False) == {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": "3",
        "NUM_STREAMS": "1",
        "ENABLE_CPU_PINNING": "NO",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "SNIPPETS_MODE": "DISABLE",
    }
    assert openvino(given, 3, pinned=True)["ENABLE_CPU_PINNING"] == "YES"


def test_clients_are_told_the_precision_that_is_computed_in() -> None:
    bf16, f32 = (choose("openvino", f"precision={precision}", PLUGGED) for precision in ("bf16", "f32"))
    assert [compute.precision("fp32") for compute in (CPU, f32, bf16)] == ["fp32", "fp32", "bf16"]
    assert [compute.lossy for compute in (CPU, f32, bf16)] == [False, False, True]


# ── fingerprints ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _fingerprint(compute: Compute) -> str:
    return fingerprint_of(replace(SOURCE, compute=compute), DIGESTS, "1.32.0")


def test_fingerprints_of_the_runtimes_own_kernels_are_those_of_before_there_were_providers() -> None:
    assert _fingerprint(CPU) == "9bee3dfb82146fa7", "databases hold vectors with this fingerprint"


def test_whatever_changes_values_changes_the_fingerprint() -> None:
    found = [
        _fingerprint(CPU),
        _fingerprint(choose("openvino", "precision=bf16", PLUGGED)),
        _fingerprint(choose("openvino", "precision=f32", PLUGGED)),
        _fingerprint(choose("openvino", "precision=f32,SNIPPETS_MODE=DISABLE", PLUGGED)),
        _fingerprint(choose("openvino", "", replace(PLUGGED, plugins={"onnxruntime-ep-openvino": "1.9.0"}))),
        _fingerprint(choose("cuda", "", WITH_GPU)),
        _fingerprint(choose("tensorrt", "", WITH_GPU)),
    ]
    assert len(set(found)) == len(found)


def test_what_is_said_and_what_is_meant_anyway_have_one_fingerprint() -> None:
    assert _fingerprint(choose("openvino", "", PLUGGED)) == _fingerprint(choose("openvino", "precision=bf16", PLUGGED))
    twice = [choose("openvino", text, PLUGGED) for text in ("precision=f32,A=1,B=2", "B=2,A=1,precision=f32")]
    assert _fingerprint(twice[0]) == _fingerprint(twice[1])


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────

OPENVINO = choose("openvino", "", PLUGGED)


@pytest.mark.parametrize(("given", "left"), [(64, 64), (100, 96), (514, 512), (16, 16)])
def test_a_text_never_gets_a_width_that_the_model_has_no_positions_for(given: int, left: int) -> None:
    assert computed_by(OPENVINO, replace(SOURCE, max_tokens=given)).max_tokens == left
    step = CPU.provider.width_step
    assert computed_by(CPU, replace(SOURCE, max_tokens=given)).max_tokens == given // step * step


def test_what_does_not_go_together_is_refused() -> None:
    for source, compute, words in (
        (replace(SOURCE, max_tokens=15), OPENVINO, "steps of 16"),
        (replace(SOURCE, quantize="q8"), OPENVINO, "--precision fp32"),
        (replace(SOURCE, quantize="q4"), choose("cuda", "", WITH_GPU), "--provider cuda"),
        (
            replace(SOURCE, no_float16="it overflows"),
            choose("openvino", "precision=f16", replace(PLUGGED, flags=frozenset({"amx_fp16"}))),
            "f16: it overflows",
        ),
    ):
        with pytest.raises(ModelError, match=re.escape(words)):
            computed_by(compute, source)
    assert computed_by(CPU, replace(SOURCE, quantize="q8", max_tokens=8)).compute == CPU


@pytest.mark.parametrize(
    ("precision", "cosine", "fits"), [("f32", 0.9995, False), ("bf16", 0.9995, True), ("bf16", 0.95, False)]
)
def test_a_provider_that_reads_a_graph_wrongly_is_refused(precision: str, cosine: float, fits: bool) -> None:
    """As OpenVINO did with rotary positions: the whole graph was taken, nothing was said, and the cosine was 0.88."""
    source = replace(SOURCE, compute=choose("openvino", f"precision={precision}", PLUGGED))
    if fits:
        hold_to(np.array([1.0, cosine]), source)
    else:
        with pytest.raises(ModelError, match=r"OpenVINOExecutionProvider on tiny.*use --provider cpu"):
            hold_to(np.array([1.0, cosine]), source)


def test_a_provider_is_judged_before_a_model_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "offered", lambda _: PLAIN)
    with pytest.raises(ModelError, match=r"embedpool\[openvino\]"):
        resolve.resolve(resolve.Wanted("no-such-model", provider="openvino"))


def test_widths_are_multiples_of_the_step() -> None:
    spec = ModelSpec(name="tiny", dim=4, max_tokens=64, prompts={}, fingerprint="f" * 16)
    assert [spec.width(n) for n in (0, 1, 7, 64)] == [1, 1, 7, 64]
    stepped = replace(spec, width_step=BY_NAME["openvino"].width_step)
    assert [stepped.width(n) for n in (0, 1, 16, 17, 64)] == [16, 16, 16, 32, 64]


def test_kernels_on_arm_want_widths_of_four_and_those_of_x86_any() -> None:
    assert [providers.own_step(arch) for arch in ("aarch64", "arm64", "x86_64", "AMD64", "riscv64")] == [4, 4, 1, 1, 1]


def test_a_text_is_read_up_to_the_last_whole_step() -> None:
    arm = Compute(replace(CPU.provider, width_step=4))
    assert computed_by(arm, replace(SOURCE, max_tokens=99)).max_tokens == 96


def test_a_spec_that_was_stored_before_there_were_providers_is_the_runtimes_own() -> None:
    stored = '{"name":"tiny","dim":4,"max_tokens":64,"prompts":{},"fingerprint":"f"}'
    spec = ModelSpec.from_json(stored)
    assert (spec.provider, spec.provider_options, spec.width_step, spec.batch_tokens) == (
        "cpu",
        {},
        1,
        CPU.provider.batch_tokens,
    )


def test_only_the_runtimes_own_kernels_get_weights_in_their_own_form() -> None:
    assert [provider.name for provider in providers.PROVIDERS if not provider.portable] == ["cpu"]
