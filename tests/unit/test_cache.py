"""A cache that is wrong is wrong for ever: a half-made artifact would be mapped by every worker, one for another processor
would be slow without a word, a digest remembered too long would let a changed model pass for the old one. All of it is tried
in a temporary directory with files of a few bytes.
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedpool.errors import ModelError
from embedpool.models import cache
from embedpool.models.cache import FORMAT, NOTE, Artifact, Cache, Machine, cpu_features
from embedpool.models.spec import ModelSpec

MACHINE = Machine(arch="x86_64", features=("avx2", "fma"), runtime="1.32.0")
SPEC = ModelSpec(name="tiny", dim=4, max_tokens=64, prompts={"query": "Q: "}, output_range=(-1.0, 1.0), fingerprint="f" * 16)
LONG_AGO = 1_600_000_000


def _source(tmp_path: Path, content: str = "weights") -> Path:
    """A file that was written long ago."""
    path = tmp_path / "source.onnx"
    path.write_text(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def _make(store: Cache, name: str = "tiny-1", sources: dict[Path, str] | None = None, machine: Machine = MACHINE) -> Artifact:
    """A whole artifact of two files."""
    with store.locked(_nobody), store.making(name) as directory:
        (directory / "model.onnx").write_text("graph")
        (directory / "model.onnx.data").write_text("data")
        cache.note(SPEC, machine, sources or {}, directory, {"quantized": "q8"})
    found = store.find(name)
    assert found is not None
    return found


def _nobody() -> None:
    raise AssertionError("nobody else was in the cache")


def _inside(store: Cache) -> list[str]:
    return sorted(path.name for path in store.artifacts.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


# ── the processor ────────────────────────────────────────────────────────────────────────────────────────────────────

X86 = """processor\t: {n}
vendor_id\t: GenuineIntel
flags\t\t: fpu vme sse sse2 ht syscall sse4_1 sse4_2 fma cx16 avx f16c rdrand avx2 bmi2 {more} avx_vnni amx_tile amx_int8
vmx flags\t: vnmi avx512f ept
bugs\t\t: spectre_v1 avx512_vnni
power management:

"""
ARM = """processor\t: {n}
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc asimddp {more}
CPU implementer\t: 0x41

"""


def test_x86_features_are_those_that_matter_in_one_order_whatever_the_kernels() -> None:
    expected = ("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "amx_tile", "amx_int8")
    assert cpu_features(X86.format(n=0, more="")) == expected
    backwards = "flags\t\t: " + " ".join(reversed(X86.format(n=0, more="").splitlines()[2].split()[2:])) + "\n"
    assert cpu_features(backwards) == expected


def test_every_feature_that_all_cores_have_counts_and_one_that_a_core_lacks_does_not() -> None:
    both = X86.format(n=0, more="avx512f avx512_vnni") + X86.format(n=1, more="avx512f avx512_vnni")
    assert {"avx512f", "avx512_vnni"} <= set(cpu_features(both))
    mixed = X86.format(n=0, more="avx512f avx512_vnni") + X86.format(n=1, more="avx512f")
    assert cpu_features(mixed) == ("sse4_1", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "amx_tile", "amx_int8")


def test_big_and_little_cores_have_in_common_what_both_have() -> None:
    little = "".join(ARM.format(n=n, more="") for n in range(4))
    big = "".join(ARM.format(n=n, more="sve sve2 i8mm bf16") for n in range(4, 8))
    assert cpu_features(big) == ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")
    for text in (little, little + big, big + little):
        assert cpu_features(text) == ("asimd", "asimdhp", "asimddp")


@pytest.mark.parametrize("text", ["", "processor\t: 0\n", "flags\n", "flags\t:\n", "model name : flags : avx2\n"])
def test_a_processor_that_says_nothing_has_no_features(text: str) -> None:
    assert cpu_features(text) == ()


def test_this_machine_is_the_one_that_the_test_runs_on() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    machine = cache.this_machine()
    assert (machine.arch, machine.runtime) == (platform.machine(), onnxruntime.__version__)
    if machine.arch in ("x86_64", "aarch64"):
        assert {"sse4_1", "asimd"} & set(machine.features)


def test_the_runtime_may_be_installed_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise PackageNotFoundError(name)
        return "9.9.9"

    monkeypatch.setattr(cache, "version", version)
    assert cache.runtime_version() == "9.9.9"


# ── making and finding ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_artifact_is_found_by_its_name_with_all_that_was_written_down(store: Cache, tmp_path: Path) -> None:
    assert store.find("tiny-1") is None
    assert (store.all(), store.root.exists()) == ([], False), "looking into a cache does not make it"
    made = _make(store, sources={_source(tmp_path): "abc"})
    assert made.path == store.artifacts / "tiny-1"
    assert made.note["quantized"] == "q8"
    assert made.note["sources"][0]["sha256"] == "abc"
    assert made.nbytes == len("graph") + len("data") + (made.path / NOTE).stat().st_size
    assert (made.is_whole(), made.stale(MACHINE)) == (True, "")
    assert store.find("tiny-2") is None
    assert [artifact.path.name for artifact in store.all()] == ["tiny-1"]


def test_the_spec_of_an_artifact_says_where_it_lies_now(store: Cache) -> None:
    made = _make(store)
    expected = json.loads(SPEC.to_json()) | {"directory": str(made.path)}
    assert json.loads(made.spec.to_json()) == expected
    moved = store.root.rename(store.root.parent / "moved")
    found = Cache(moved).find("tiny-1")
    assert found is not None
    assert found.spec.directory == str(moved / "artifacts/tiny-1")


@pytest.mark.parametrize("error", [ModelError("no"), OSError("full"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_what_was_not_finished_leaves_nothing(store: Cache, error: BaseException) -> None:
    def half(directory: Path) -> None:
        (directory / "sub").mkdir()
        (directory / "model.onnx").write_text("half a gr")
        raise error

    with pytest.raises(type(error)), store.locked(_nobody), store.making("tiny-1") as directory:
        half(directory)
    assert _inside(store) == []


def test_what_is_being_made_is_found_by_nobody(store: Cache) -> None:
    with store.locked(_nobody), store.making("tiny-1") as directory:
        (directory / "model.onnx").write_text("graph")
        cache.note(SPEC, MACHINE, {}, directory, {})
        assert (store.find("tiny-1"), store.all()) == (None, [])
    assert store.find("tiny-1") is not None


def test_a_damaged_artifact_is_replaced_and_stays_until_then(store: Cache) -> None:
    damaged = _make(store).path
    (damaged / "model.onnx.data").unlink()
    (damaged / "left").write_text("over")
    with pytest.raises(ModelError), store.locked(_nobody), store.making("tiny-1"):
        raise ModelError("no")
    assert (damaged / "left").exists()
    _make(store)
    assert sorted(path.name for path in damaged.iterdir()) == sorted(["model.onnx", "model.onnx.data", NOTE])
    assert _inside(store) == ["tiny-1"]


def test_two_artifacts_are_told_apart_and_one_is_removed_alone(store: Cache) -> None:
    one, two = _make(store, "tiny-1"), _make(store, "tiny-2")
    store.remove(one)
    assert (store.find("tiny-1"), store.find("tiny-2")) == (None, two)
    store.remove(one)  # somebody was faster
    assert _inside(store) == ["tiny-2"]


def _cut(path: Path) -> None:
    os.truncate(path / "model.onnx.data", 3)


def _grown(path: Path) -> None:
    (path / "model.onnx").write_text("graph!")


def _gone(path: Path) -> None:
    (path / "model.onnx").unlink()


def _without_note(path: Path) -> None:
    (path / NOTE).unlink()


def _cut_note(path: Path) -> None:
    os.truncate(path / NOTE, (path / NOTE).stat().st_size // 2)


def _noted(**fields: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / NOTE).write_text(json.dumps(json.loads((path / NOTE).read_text()) | fields))

    return change


def _no_object(path: Path) -> None:
    (path / NOTE).write_text("[1, 2]")


def _nothing_inside(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


DAMAGES: list[Callable[[Path], None]] = [_cut, _grown, _gone, _without_note, _cut_note, _no_object, _nothing_inside]
DAMAGES += [_noted(format=FORMAT + 1), _noted(format=None), _noted(files=None), _noted(files=["model.onnx"])]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: getattr(damage, "__name__", ""))
def test_what_is_not_whole_is_never_found_but_is_listed_as_damaged(store: Cache, damage: Callable[[Path], None]) -> None:
    path = _make(store).path
    damage(path)
    assert store.find("tiny-1") is None
    (listed,) = store.all()
    assert (listed.path, listed.is_whole()) == (path, False)
    assert listed.stale(MACHINE) == "damaged, or of another version of embedpool"
    assert listed.nbytes >= 0


def test_a_file_among_the_artifacts_is_none(store: Cache) -> None:
    _make(store)
    (store.artifacts / "README").write_text("not an artifact")
    assert store.find("README") is None
    assert [artifact.path.name for artifact in store.all()] == ["tiny-1"]


# ── of no use any more ───────────────────────────────────────────────────────────────────────────────────────────────


def _machine(**changes: Any) -> Machine:
    return Machine(**({"arch": MACHINE.arch, "features": MACHINE.features, "runtime": MACHINE.runtime} | changes))


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (MACHINE, ""),
        (_machine(runtime="1.33.0"), "for ONNX Runtime 1.32.0, here is 1.33.0"),
        (_machine(features=("avx2",)), "for another processor"),
        (_machine(features=("avx2", "fma", "avx512f")), "for another processor"),
        (_machine(features=("fma", "avx2")), "for another processor"),  # no such machine: their order is the table's
        (_machine(arch="aarch64"), "for another processor"),
        (_machine(arch="aarch64", runtime="1.33.0"), "for ONNX Runtime 1.32.0, here is 1.33.0"),
    ],
)
def test_an_artifact_is_of_use_on_machines_like_the_one_it_was_made_on(store: Cache, machine: Machine, reason: str) -> None:
    assert _make(store).stale(machine) == reason


def _touched(path: Path) -> None:
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))


def _longer(path: Path) -> None:
    path.write_text("weights!")
    os.utime(path, (LONG_AGO, LONG_AGO))


def _replaced(path: Path) -> None:
    """By a file of the same size and time: only its inode is another."""
    other = path.with_name("other")
    other.write_text("WEIGHTS")
    os.utime(other, (LONG_AGO, LONG_AGO))
    other.replace(path)


@pytest.mark.parametrize("change", [Path.unlink, _touched, _longer, _replaced], ids=lambda change: change.__name__)
def test_an_artifact_of_a_source_that_changed_is_of_no_use(
    store: Cache, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    source, other = _source(tmp_path), tmp_path / "tokenizer.json"
    other.write_text("{}")
    made = _make(store, sources={other: "abc", source: "def"})
    assert made.stale(MACHINE) == ""
    change(source)
    assert made.stale(MACHINE) == f"made from {source}, which is gone or was changed"
    assert made.is_whole(), "workers that have it may go on"


# ── alone in the cache ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_killed_process_left_aside_is_swept_by_the_next_one_with_the_lock(store: Cache) -> None:
    _make(store)
    left = store.artifacts / f"{cache.ASIDE}tiny-2"
    (left / "workshop").mkdir(parents=True)
    (left / "workshop/model.onnx").write_text("half")
    assert [artifact.path.name for artifact in store.all()] == ["tiny-1"]
    assert left.exists(), "without the lock, somebody may be making it"
    with store.locked(_nobody):
        assert _inside(store) == ["tiny-1"]
    _make(store, "tiny-2")


def test_whoever_waits_is_told_once_and_sweeps_only_when_it_is_alone(store: Cache) -> None:
    left = store.artifacts / f"{cache.ASIDE}tiny-1"
    left.mkdir(parents=True)
    other = os.open(store.root / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    told: list[bool] = []

    def waiting() -> None:
        told.append(left.exists())
        os.close(other)  # the other process ends

    with store.locked(waiting):
        assert told == [True]
        assert not left.exists()
        again = os.open(store.root / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(again)


@pytest.mark.parametrize("error", [None, ModelError("no"), KeyboardInterrupt()], ids=repr)
def test_the_lock_is_given_back_whatever_happens(store: Cache, error: BaseException | None) -> None:
    gc.collect()  # what other tests left to it must not end in between
    descriptors = set(os.listdir("/proc/self/fd"))
    try:
        with store.locked(_nobody):
            if error is not None:
                raise error
    except (ModelError, KeyboardInterrupt):
        pass
    with store.locked(_nobody):
        pass
    assert set(os.listdir("/proc/self/fd")) == descriptors


def _below_a_file(root: Path) -> Cache:
    root.write_text("a file")
    return Cache(root / "cache")


def test_a_cache_that_cannot_be_made_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    for store in (_below_a_file(tmp_path / "file"), Cache(tmp_path / "file")):
        with pytest.raises(ModelError) as caught, store.locked(_nobody):
            pytest.fail("there is no such directory")
        for word in (f"{store.root} cannot be written", "Not a directory", "--cache or EMBEDPOOL_CACHE"):
            assert word in caught.value.message
        assert store.find("tiny-1") is None
        assert store.all() == []


def test_a_cache_that_is_only_read_says_why_what_is_in_it_is_of_no_use(store: Cache) -> None:
    others = [f"0.0.{n}" for n in range(5)]
    for runtime in (*others, others[0]):
        _make(store, f"tiny-{runtime}", machine=_machine(runtime=runtime))
    _make(store, "vax", machine=_machine(arch="vax", runtime=cache.runtime_version()))
    (store.root / "lock").unlink()
    (store.root / "lock").mkdir()  # cannot be opened for writing, by root neither
    with pytest.raises(ModelError) as caught, store.locked(_nobody):
        pytest.fail("there is no lock")
    reasons = [f"for ONNX Runtime {other}, here is {cache.runtime_version()}" for other in others]
    assert caught.value.message.endswith(f"; what is in it is {', '.join([*reasons, 'for another processor'])}")


def test_what_takes_more_room_than_there_is_is_refused_in_numbers(store: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []

    def usage(path: Path) -> Any:
        looked.append(Path(path))
        return SimpleNamespace(free=45_400_000)

    monkeypatch.setattr("shutil.disk_usage", usage)
    store.needs(45_400_000, "tiny")
    with pytest.raises(ModelError) as caught:
        store.needs(1_234_000_000, "tiny")
    for words in ("preparing tiny takes about 1234 MB", f"in {store.root}", "45 MB are free", "embedpool models --clean"):
        assert words in caught.value.message
    assert "--cache" in caught.value.message
    assert set(looked) == {store.artifacts}, "the root may be on another file system"


# ── digests ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read for their digest, each time."""
    found: list[Path] = []
    sha256 = cache._sha256

    def counted(file: Path) -> str:
        found.append(file)
        return sha256(file)

    monkeypatch.setattr(cache, "_sha256", counted)
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_file_is_read_once_and_remembered_by_the_next_process_too(store: Cache, tmp_path: Path, reads: list[Path]) -> None:
    source = _source(tmp_path)
    for again in (store, store, Cache(store.root)):
        assert again.digest(source) == _sha256("weights")
    assert reads == [source]
    assert Cache(tmp_path / "another").digest(source) == _sha256("weights")
    assert reads == [source, source]


@pytest.mark.parametrize(
    ("change", "content"),
    [(_touched, "weights"), (_longer, "weights!"), (_replaced, "WEIGHTS")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_may_have_changed_is_read_again(
    store: Cache, tmp_path: Path, reads: list[Path], change: Callable[[Path], None], content: str
) -> None:
    source = _source(tmp_path)
    store.digest(source)
    change(source)
    for _ in range(2):
        assert store.digest(source) == _sha256(content)
    assert reads == [source, source]


def test_a_file_that_was_changed_just_now_is_not_remembered(
    store: Cache, tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, now = _source(tmp_path), time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    for age_s, remembered in ((0.0, False), (cache.SETTLED_S - 0.1, False), (-3600.0, False), (cache.SETTLED_S + 0.1, True)):
        os.utime(source, (now, now - age_s))
        reads.clear()
        for _ in range(3):
            store.digest(source)
        assert len(reads) == (1 if remembered else 3), age_s


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    store: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _source(tmp_path)
    sha256 = cache._sha256

    def meanwhile(file: Path) -> str:
        found = sha256(file)
        file.write_text("others!")
        os.utime(file, (LONG_AGO + 5, LONG_AGO + 5))
        return found

    monkeypatch.setattr(cache, "_sha256", meanwhile)
    assert store.digest(source) == _sha256("weights")
    assert not (store.root / "digests").exists()
    monkeypatch.setattr(cache, "_sha256", sha256)
    assert store.digest(source) == _sha256("others!")


def test_two_files_are_remembered_apart(store: Cache, tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "a").mkdir()
    one, other = _source(tmp_path), _source(tmp_path / "a", "other")
    for _ in range(2):
        assert (store.digest(one), store.digest(other)) == (_sha256("weights"), _sha256("other"))
    assert reads == [one, other]


@pytest.mark.parametrize("memory", ["", "{", "[]", "5", "{}", '{"sha256": "00"}', "\udcff"])
def test_a_memory_that_is_damaged_is_none(store: Cache, tmp_path: Path, reads: list[Path], memory: str) -> None:
    source = _source(tmp_path)
    store.digest(source)
    (file,) = (store.root / "digests").iterdir()
    file.write_bytes(memory.encode(errors="surrogateescape"))
    for _ in range(2):
        assert store.digest(source) == _sha256("weights")
    assert len(reads) == 2, "it was mended"


def test_a_cache_that_cannot_be_written_forgets_and_digests_all_the_same(tmp_path: Path, reads: list[Path]) -> None:
    store, source = _below_a_file(tmp_path / "file"), _source(tmp_path)
    for _ in range(2):
        assert store.digest(source) == _sha256("weights")
    assert len(reads) == 2


def test_remembering_leaves_no_other_file(store: Cache, tmp_path: Path) -> None:
    store.digest(_source(tmp_path))
    assert [path.suffix for path in (store.root / "digests").iterdir()] == [".json"]
