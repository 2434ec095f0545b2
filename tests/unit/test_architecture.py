"""The rules that no single module can keep alone: imports point one way, each foreign library has its one place, what is
pure asks neither the clock nor the system, and what is written about the code names things that exist.
"""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import embedpool

ROOT = Path(embedpool.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

PLACES = {
    "zmq": {
        "client/link.py",
        "client/sync.py",
        "client/aio.py",
        "edge.py",
        "router/door.py",
        "router/server.py",
        "router/sockets.py",
        "worker/inbox.py",
        "worker/main.py",
    },
    "onnxruntime": {"models/session.py"},
    "onnxruntime_ep_openvino": {"models/session.py"},
    "onnx": {
        "models/build/complete.py",
        "models/build/eight_bits.py",
        "models/build/family.py",
        "models/build/quantize.py",
        "models/build/statistics.py",
        "models/build/writer.py",
    },
    "huggingface_hub": {"cli/models.py", "models/hub.py"},
    "mmap": {"shm/segment.py"},
    "tokenizers": {"gateway/tokens.py", "models/tokenizer.py"},
    "orjson": {"bridge.py", "gateway/rendering.py"},
    "starlette": {
        "gateway/akidb.py",
        "gateway/app.py",
        "gateway/dialect.py",
        "gateway/listening.py",
        "gateway/openai.py",
        "gateway/openapi.py",
        "gateway/reading.py",
        "gateway/rendering.py",
        "gateway/service.py",
        "gateway/te_metrics.py",
        "gateway/tei.py",
    },
    "grpc": {"gateway/grpc_akidb.py"},
    "google": {"gateway/akidb_messages.py"},  # protobuf
    "uvicorn": {"gateway/listening.py"},
    "prometheus_client": {
        "cli/exporting.py",
        "gateway/metrics.py",
        "gateway/te_metrics.py",
        "gateway/tei.py",
        "metrics.py",
    },
    "langchain_core": {"integrations/langchain.py"},
    "llama_index": {"integrations/llama_index.py"},
    "haystack": {"integrations/haystack.py"},
    "chromadb": {"integrations/chroma.py"},
    "hdrh": {"bench/recording.py"},
    "matplotlib": {"bench/plot.py"},
    "torch": {"integrations/sentence_transformers.py"},
    "opentelemetry": {"traces/exporting.py", "traces/spans.py"},
}
PURE = [
    "bench/compare.py",
    "bench/numbers.py",
    "bench/recording.py",
    "bench/search.py",
    "client/arena.py",
    "client/core.py",
    "client/strings.py",
    "doctor/checks.py",
    "doctor/facts.py",
    "doctor/machine_checks.py",
    "errors.py",
    "integrations/similarity.py",
    "metrics.py",
    "models/providers.py",
    "protocol.py",
    "router/admission.py",
    "router/alike.py",
    "router/core.py",
    "router/cost.py",
    "router/descriptors.py",
    "router/events.py",
    "router/jobs.py",
    "router/load.py",
    "router/retries.py",
    "router/invariants.py",
    "router/queue.py",
    "router/state.py",
    "router/suspects.py",
    "router/tally.py",
    "router/traces.py",
    "shm/layout.py",
    "shm/room.py",
    "shm/rows.py",
    "supervise/cores.py",
    "supervise/notices.py",
    "supervise/policy.py",
    "supervise/reasons.py",
    "supervise/topology.py",
    "top/document.py",
    "top/history.py",
    "top/lines.py",
    "top/panels.py",
    "top/screen.py",
    "top/view.py",
    "top/words.py",
    "traces/context.py",
    "traces/records.py",
    "traces/stages.py",
    "worker/batching.py",
    "worker/formats.py",
]
NOT_PURE = {"asyncio", "os", "random", "secrets", "select", "selectors", "socket", "subprocess", "time", "zmq"}
ENVIRONMENT = {"bridge.py", "cli/serve.py", "config.py", "models/session.py", "models/tokenizer.py", "supervise/processes.py"}
# Libraries read these at their import, so they are set before it.
WRITTEN = {"models/session.py": {"ORT_DISABLE_TELEMETRY"}, "models/tokenizer.py": {"TOKENIZERS_PARALLELISM"}}


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _dotted(module: str) -> str:
    return ".".join(("embedpool", *module.removesuffix(".py").split("/"))).removesuffix(".__init__")


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Dotted names: `from a import b` gives a.b, which is a module or something in the module a."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they point"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _everywhere(module: str) -> set[str]:
    """The top-level packages that a module imports anywhere, also within functions."""
    return {name.partition(".")[0] for name in _imported(ast.walk(_tree(module)))}


def _at_import(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: not those of functions, not those for type checkers."""
    for node in body:
        yield node
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from _at_import(node.orelse)
            case ast.If() | ast.Try():
                yield from _at_import([*node.body, *node.orelse, *getattr(node, "finalbody", [])])
                yield from _at_import([each for handler in getattr(node, "handlers", []) for each in handler.body])
            case ast.With() | ast.ClassDef() | ast.For() | ast.While():
                yield from _at_import(node.body)
            case _:
                pass


def _edges() -> dict[str, set[str]]:
    """Which module imports which, of our own. A package counts where its own names are imported, not for what is in it."""
    ours = {_dotted(module) for module in MODULES}
    return {
        _dotted(module): {
            name if name in ours else name.rpartition(".")[0]
            for name in _imported(_at_import(_tree(module).body))
            if name.partition(".")[0] == "embedpool"
        }
        for module in MODULES
    }


# ── imports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("library", PLACES)
def test_a_foreign_library_has_its_places_and_no_other(library: str) -> None:
    assert {module for module in MODULES if library in _everywhere(module)} == PLACES[library]


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_asks_neither_the_clock_nor_the_system(module: str) -> None:
    assert _everywhere(module) & NOT_PURE == set()


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_builds_on_no_module_that_owns_a_socket_or_a_mapping(module: str) -> None:
    edges = _edges()
    reached: set[str] = set()
    waiting = [_dotted(module)]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting += edges[name] - reached
    owners = {_dotted(place) for library in ("zmq", "mmap", "onnxruntime") for place in PLACES[library]}
    assert reached & owners == set()


GATEWAY_KNOWS = re.compile(
    r"embedpool\.(__version__|(client|errors|gateway|lifeline|logs|memory|metrics|naming|protocol|traces\.context)(\..+)?)"
)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("gateway/")])
def test_the_gateway_is_an_ordinary_client_and_knows_nothing_behind_it(module: str) -> None:
    ours = {name for name in _imported(ast.walk(_tree(module))) if name.partition(".")[0] == "embedpool"}
    assert [name for name in ours if not GATEWAY_KNOWS.fullmatch(name)] == []


def test_nothing_but_the_gateway_itself_builds_on_it() -> None:
    """The supervisor starts it as a process of its own, so that a pool without HTTP loads nothing of it but its address."""
    uses = {
        module: {
            name for name in _imported(ast.walk(_tree(module))) if name.startswith(("embedpool.gateway", "embedpool.bridge"))
        }
        for module in MODULES
        if not module.startswith("gateway/")
    }
    found = {module: names for module, names in uses.items() if names}
    assert set(found) == {"supervise/gateways.py"}
    light = (
        "embedpool.gateway.address.",
        "embedpool.gateway.options.",
        "embedpool.gateway.tokens.",
    )  # what loads next to nothing
    assert all(name.startswith(light) for name in found["supervise/gateways.py"])


INTEGRATIONS_KNOW = re.compile(r"embedpool\.(client|errors|integrations|pool|protocol)(\..+)?")
INTEGRATIONS = [module for module in MODULES if module.startswith("integrations/")]
SHARED = ("integrations/__init__.py", "integrations/access.py", "integrations/similarity.py")


@pytest.mark.parametrize("module", INTEGRATIONS)
def test_an_integration_is_an_ordinary_client_and_knows_no_other_integration(module: str) -> None:
    ours = {name for name in _imported(ast.walk(_tree(module))) if name.partition(".")[0] == "embedpool"}
    assert [name for name in ours if not INTEGRATIONS_KNOW.fullmatch(name)] == []
    others = {_dotted(other) for other in INTEGRATIONS if other not in (module, *SHARED)}
    assert {name for name in ours if name in others or name.rpartition(".")[0] in others} == set()


def test_nothing_but_an_integration_imports_one() -> None:
    names = {module: _imported(ast.walk(_tree(module))) for module in MODULES}
    users = {module for module in MODULES if any(name.startswith("embedpool.integrations") for name in names[module])}
    assert "integrations/langchain.py" in users <= set(INTEGRATIONS)


def test_nothing_but_its_command_imports_what_measures() -> None:
    names = {module: _imported(ast.walk(_tree(module))) for module in MODULES if not module.startswith("bench/")}
    users = {module for module, found in names.items() if any(name.startswith("embedpool.bench") for name in found)}
    assert users == {"cli/bench.py"}


def test_the_product_knows_nothing_of_its_tests_and_benchmarks() -> None:
    assert [module for module in MODULES if _everywhere(module) & {"tests", "bench", "pytest", "hypothesis"}] == []


def test_no_module_imports_itself_by_a_detour() -> None:
    edges = _edges()
    assert sum(map(len, edges.values())) > 80, "the imports were not found"
    order = list(TopologicalSorter(edges).static_order())  # raises CycleError, which names the cycle
    assert order.index("embedpool.errors") < order.index("embedpool.protocol") < order.index("embedpool.router.core")


@cache
def _loaded_with_the_supervisor() -> set[str]:
    code = "import embedpool.supervise.supervisor, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "library",
    ["zmq", "onnxruntime", "onnx", "tokenizers", "numpy", "mmap"],
)
def test_the_supervisor_does_not_load(library: str) -> None:
    assert "embedpool.supervise.supervisor" in _loaded_with_the_supervisor()
    assert library not in _loaded_with_the_supervisor()


# ── the environment ──────────────────────────────────────────────────────────────────────────────────────────────────


def _environment_uses(module: str) -> list[ast.Attribute]:
    """Every `os.environ` and its like; `from os import environ` would be missed here and is not allowed."""
    assert not {"os.environ", "os.getenv"} & _imported(ast.walk(_tree(module))), module
    names = ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")
    return [
        node
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name) and node.value.id == "os"
    ]


def test_the_environment_is_used_in_few_places_and_no_other() -> None:
    assert {module for module in MODULES if _environment_uses(module)} == ENVIRONMENT


@pytest.mark.parametrize("module", WRITTEN)
def test_modules_that_must_set_a_variable_set_it_and_read_nothing(module: str) -> None:
    written: dict[ast.AST, str] = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.slice, ast.Constant):
            written[node.value] = str(node.slice.value)
    assert {written.get(use, f"a use in line {use.lineno}") for use in _environment_uses(module)} == WRITTEN[module]


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_public_names_are_few_and_all_there() -> None:
    assert len(embedpool.__all__) <= 12
    assert len(set(embedpool.__all__)) == len(embedpool.__all__)
    for name in embedpool.__all__:
        assert getattr(embedpool, name) is not None
        assert not isinstance(getattr(embedpool, name), ModuleType)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="embedpool"):
        embedpool.Cleint  # noqa: B018 - the access is what is tested


def test_every_name_in_the_data_path_exists() -> None:
    names = re.findall(r"^\d+\. ([\w.]+)", embedpool.__doc__ or "", re.MULTILINE)
    assert len(names) == 7
    for name in names:
        assert callable(pkgutil.resolve_name(f"embedpool.{name}")), name
