"""What can compute a model, and what each way asks for and changes. Pure: what is installed and what the processor can do are
given, so that every refusal can be tried on any machine.

A provider is ONNX Runtime's word for a backend. All but "cpu" give vectors that differ from the processor's own kernels in the
last digits at least, so they are part of a model's fingerprint; "cpu" is not, which keeps the fingerprints that exist.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

from embedpool.errors import ModelError

PRECISIONS = ("bf16", "f32", "f16")  # of openvino
ARM = ("aarch64", "arm64")  # platform.machine() of Linux and of macOS
# Any of these in /proc/cpuinfo. Without one OpenVINO computes in f32 and does not say so.
NEEDS = {"bf16": ("amx_bf16", "avx512_bf16"), "f16": ("amx_fp16", "avx512_fp16"), "f32": ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """`runtime` is ONNX Runtime's name of it. `install` says what brings it, in words that end a sentence.

    `package` brings it as a plug-in of the installed ONNX Runtime, "" if it is part of some ONNX Runtime. `portable`: it gets
    the graph as it is before ONNX Runtime turns it into what its own kernels read best. Rows run in matrices of a width that is
    a multiple of `width_step`, about `batch_tokens` tokens in each, or `alone`.
    """

    name: str
    runtime: str
    install: str
    package: str = ""
    gpu: bool = False
    portable: bool = True
    width_step: int = 1
    batch_tokens: int = 128
    alone: bool = False


_GPU_WHEEL = (
    "pip uninstall onnxruntime && pip install onnxruntime-gpu, which takes its place (on a Jetson, the wheel that is made for"
    " its JetPack)"
)


def own_step(arch: str) -> int:
    """The width step of ONNX Runtime's own kernels. On ARM the last digits depend on the width unless it is a multiple of four,
    as they do where numbers are added up by fours and what is left over one by one; on x86 they never do. Measured on an
    emulated Cortex-A76: of 119 texts in padded batches 44 had other bytes at multiples of 2, none of 94 to 120 at multiples of
    4, 8 and 16 (BERT, Gemma, Qwen); the number of rows never matters."""
    return 4 if arch in ARM else 1


PROVIDERS = (
    Provider(
        name="cpu",
        runtime="CPUExecutionProvider",
        install="pip install onnxruntime",
        portable=False,
        width_step=own_step(platform.machine()),
    ),
    # Measured (MiniLM in bf16 and f32, EmbeddingGemma's shape in bf16; AMX): a row's bytes are the same in any batch and at any
    # width that is a multiple of 16, the lanes of AVX-512; at others they depend on the width. A token of 8 rows of 64 takes
    # 25 % less time than one of a single such row in MiniLM, 45 % less in EmbeddingGemma.
    Provider(
        name="openvino",
        runtime="OpenVINOExecutionProvider",
        install="pip install 'embedpool[openvino]' (x86-64)",
        package="onnxruntime-ep-openvino",
        width_step=16,
        batch_tokens=512,
    ),
    # Products of matrices are cut by their size, and nobody has measured here that rows do not notice: each runs alone.
    Provider(name="cuda", runtime="CUDAExecutionProvider", install=_GPU_WHEEL, gpu=True, alone=True),
    Provider(name="tensorrt", runtime="TensorrtExecutionProvider", install=_GPU_WHEEL, gpu=True, alone=True),
    Provider(
        name="coreml",
        runtime="CoreMLExecutionProvider",
        install="it is part of ONNX Runtime for macOS, where embedpool does not run",
        alone=True,
    ),
)
NAMES = tuple(provider.name for provider in PROVIDERS)
BY_NAME = dict(zip(NAMES, PROVIDERS, strict=True))


@dataclass(frozen=True, slots=True)
class Offered:
    """What there is: ONNX Runtime's version and providers, the `plugins` that are installed with their versions, and the
    processor's `flags`."""

    version: str
    runtime: tuple[str, ...]
    plugins: Mapping[str, str]
    flags: frozenset[str]


@dataclass(frozen=True, slots=True)
class Compute:
    """A provider that was asked for and is there. `version` is its plug-in's, "" without one."""

    provider: Provider
    options: dict[str, str] = field(default_factory=dict)
    version: str = ""

    def identity(self) -> dict[str, object]:
        """What it adds to a fingerprint; nothing where ONNX Runtime's own kernels compute."""
        if self.provider.name == "cpu":
            return {}
        return {"provider": [self.provider.name, self.version, sorted(self.options.items())]}

    @property
    def lossy(self) -> bool:
        """Whether fewer bits than those of the weights are computed with."""
        return self.options.get("precision", "f32") != "f32"

    def precision(self, of_graph: str) -> str:
        """What vectors are computed with, as clients are told."""
        return self.options["precision"] if self.lossy else of_graph


CPU = Compute(BY_NAME["cpu"])


def parse(text: str) -> dict[str, str]:
    """key=value,key=value. Raises ModelError."""
    found: dict[str, str] = {}
    for each in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in each.partition("="))
        if not key or not equals or not value:
            raise ModelError(f"--provider-options is key=value,key=value, not {text!r}")
        if key in found:
            raise ModelError(f"--provider-options gives {key} twice")
        found[key] = value
    return found


def choose(name: str, options: str, offered: Offered) -> Compute:
    """Raises ModelError with one sentence that says what to install or to give instead."""
    provider = BY_NAME.get(name)
    if provider is None:
        raise ModelError(f"--provider is one of {', '.join(NAMES)}, not {name!r}")
    given = parse(options)
    if provider.name == "cpu":
        if given:
            raise ModelError(f"--provider-options has nothing to say to --provider cpu: {options!r}")
        return CPU
    _check_installed(provider, offered)
    if provider.name == "openvino":
        return Compute(provider, _openvino(given, offered.flags), offered.plugins[provider.package])
    if "device_id" in given:
        raise ModelError("--provider-options device_id is not for you to give: the pool gives each worker its own")
    return Compute(provider, given)


def _check_installed(provider: Provider, offered: Offered) -> None:
    if provider.package:
        if provider.package not in offered.plugins:
            raise ModelError(f"--provider {provider.name} needs a package that is not installed: {provider.install}")
    elif provider.runtime not in offered.runtime:
        there = ", ".join(offered.runtime) or "none"
        raise ModelError(
            f"--provider {provider.name} is not part of the installed ONNX Runtime {offered.version} (which has {there}):"
            f" {provider.install}"
        )


def _openvino(given: dict[str, str], flags: frozenset[str]) -> dict[str, str]:
    """With the precision, which is bf16 unless said; names in capitals are OpenVINO's own properties of its CPU device."""
    unknown = [name for name in given if name != "precision" and not name.isupper()]
    if unknown:
        raise ModelError(
            f"--provider openvino has no option {unknown[0]!r}: there are precision={'|'.join(PRECISIONS)}, and OpenVINO's own"
            " properties, in capitals"
        )
    precision = given.get("precision", "bf16")
    if precision not in PRECISIONS:
        raise ModelError(f"the precision of --provider openvino is one of {', '.join(PRECISIONS)}, not {precision!r}")
    needs = NEEDS[precision]
    if needs and not flags & set(needs):
        raise ModelError(
            f"this processor does not compute in {precision} (neither {' nor '.join(needs)} in /proc/cpuinfo), and OpenVINO"
            " would do so in f32 without a word: give --provider-options precision=f32"
        )
    return {**given, "precision": precision}
