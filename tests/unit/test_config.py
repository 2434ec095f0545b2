"""A setting that is silently ignored is found weeks later, so: where a value comes from, what is refused and in which words
is checked for every row of the table, with files in a temporary directory and an environment that is passed in.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from embedpool import config
from embedpool.config import LONGEST_SOCKET_PATH, Config, default_runtime_dir, find_endpoint, is_tmpfs, load
from embedpool.errors import ConfigError
from embedpool.models.resolve import Wanted

ROWS = {row.name: row for row in config.rows()}
UNITS = {
    "ms": "ms",
    "s": "s",
    "bytes": "bytes",
    "rows": "rows",
    "tokens": "tokens",
    "sessions": "sessions",
    "chars": "characters",
}
NOTHING: dict[str, str] = {}


def _file(directory: Path, text: str) -> str:
    path = directory / "pool.toml"
    path.write_text(text)
    return str(path)


def _refused(*words: str, flags: dict[str, Any] | None = None, file: str = "", environ: dict[str, str] = NOTHING) -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags or {}, file, environ)
    for word in words:
        assert word in caught.value.message


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_a_type_a_help_and_a_default_that_it_would_take(name: str) -> None:
    row = ROWS[name]
    kind = type(row.default)
    assert kind in (str, int, float, bool)
    assert row.type == kind.__name__, "the annotation is not the default's type"
    assert row.metadata["help"].strip()
    low, high, choices = row.metadata["low"], row.metadata["high"], row.metadata["choices"]
    if kind in (int, float):
        assert row.metadata["unit"]
        assert low <= row.default <= high
    assert not choices or row.default in choices
    assert getattr(load({name: str(row.default)}, environ={}), name) == row.default


@pytest.mark.parametrize("name", [name for name in ROWS if name.rpartition("_")[2] in UNITS])
def test_a_name_that_ends_in_a_unit_has_that_unit(name: str) -> None:
    assert ROWS[name].metadata["unit"] == UNITS[name.rpartition("_")[2]]


def test_a_setting_has_the_same_name_everywhere() -> None:
    assert (config.flag("drain_s"), config.variable("drain_s")) == ("--drain-s", "EMBEDPOOL_DRAIN_S")


# ── where a value comes from ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    flags, environ, file = {"max_sessions": "3"}, {"EMBEDPOOL_MAX_SESSIONS": "2"}, _file(tmp_path, "max_sessions = 1")
    assert load(flags, file, environ).max_sessions == 3
    assert load({"max_sessions": None}, file, environ).max_sessions == 2
    assert load({}, file, {}).max_sessions == 1
    assert load({}, "", {}).max_sessions == Config().max_sessions


def test_settings_of_different_places_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDPOOL_WORKERS", "2")
    made = load({"model": "echo"}, _file(tmp_path, "slice_ms = 5\npin = false"))
    assert (made.model, made.slice_ms, made.pin, made.workers) == ("echo", 5.0, False, 2)


def test_other_variables_and_flags_are_not_our_business() -> None:
    assert load({"ready_json": True, "config": "x"}, environ={"EMBEDPOOL_CONFIG": "y", "MODEL": "z"}) == Config()


def test_workers_may_be_auto_wherever_they_are_set(tmp_path: Path) -> None:
    assert load({"workers": "auto"}, environ={"EMBEDPOOL_WORKERS": "3"}).workers == 0
    assert load({}, _file(tmp_path, "workers = 3"), {"EMBEDPOOL_WORKERS": "auto"}).workers == 0
    assert load({"workers": None}, _file(tmp_path, 'workers = "auto"'), {}).workers == 0


@pytest.mark.parametrize("value", [True, False])
def test_switches_are_read_in_the_usual_words(value: bool) -> None:
    for text in ("true", "True", "1", "YES") if value else ("false", "FALSE", "0", "no"):
        assert load({"pin": text}, environ={}).pin is value


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("workers", "many", "a whole number from 0 to 512, or auto"),
        ("workers", "-1", "a whole number"),
        ("workers", "513", "a whole number"),
        ("workers", "1.5", "a whole number"),
        ("max_sessions", "0", "a whole number from 1 to 65536"),
        ("max_sessions", "auto", "a whole number"),
        ("max_sessions", "", "a whole number"),
        ("slice_ms", "0.5", "a number from 1 to 10000"),
        ("slice_ms", "nan", "a number"),
        ("drain_s", "inf", "a number"),
        ("pin", "perhaps", "true or false"),
        ("pin", "", "true or false"),
        ("pooling", "max", "one of auto, none, mean, cls, last"),
        ("precision", "int8", "one of auto, fp32, fp16, q8, q4, uint8"),
        ("precision", "", "one of auto, fp32"),
    ],
)
def test_a_bad_value_names_its_setting_its_place_and_what_is_wanted(tmp_path: Path, name: str, value: str, wanted: str) -> None:
    _refused(f"{name} must be {wanted}", repr(value), f"from {config.flag(name)}", flags={name: value})
    _refused(f"{name} must be {wanted}", repr(value), f"from {config.variable(name)}", environ={config.variable(name): value})
    file = _file(tmp_path, f'{name} = "{value}"')
    _refused(f"{name} must be {wanted}", repr(value), f"in {file}", file=file)


@pytest.mark.parametrize(
    "line", ["workers = 1.0", "workers = true", "slice_ms = [1]", "slice_ms = false", "pin = 2", "workers = {}"]
)
def test_a_value_of_another_type_in_the_file_is_refused(tmp_path: Path, line: str) -> None:
    _refused(line.partition(" ")[0], "pool.toml", file=_file(tmp_path, line))


@pytest.mark.parametrize("line", ["model = 5", 'model = ["a"]', "cache = {a = 1}"])
def test_what_is_not_a_string_in_the_file_is_refused_where_a_string_is_wanted(tmp_path: Path, line: str) -> None:
    _refused(line.partition(" ")[0], "a string", file=_file(tmp_path, line))


def test_a_number_beyond_all_floats_is_refused(tmp_path: Path) -> None:
    _refused("slice_ms", file=_file(tmp_path, "slice_ms = 1" + "0" * 400))


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    _refused("pool.toml", "colour, wrokers", file=_file(tmp_path, "wrokers = 2\nmodel = 'echo'\ncolour = 'red'"))


@pytest.mark.parametrize("text", ["workers = ", "workers = 1\nworkers = 2", None])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    file = str(tmp_path / "pool.toml") if text is None else _file(tmp_path, text)
    _refused(f"{file} cannot be read", file=file)


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_setting_of_the_model_reaches_those_who_find_it() -> None:
    flags = {
        "model": "minilm",
        "precision": "q4",
        "model_dir": "/m",
        "onnx_file": "a.onnx",
        "pooling": "cls",
        "max_tokens": "64",
        "output_range": "-1,1",
        "provider": "openvino",
        "provider_options": "precision=f32",
        "cache": "/c",
    }
    assert Wanted(**load(flags, environ={}).wanted_model()) == Wanted(**{**flags, "max_tokens": 64})  # type: ignore[arg-type]
    assert {field.name for field in fields(Wanted)} == set(flags), "a setting that no row gives"


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"CACHE_DIRECTORY": "/var/cache/a:/var/cache/b", "XDG_CACHE_HOME": "/x"}, "/var/cache/a/embedpool"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/embedpool"),
        ({"CACHE_DIRECTORY": "", "XDG_CACHE_HOME": ""}, "/home/u/.cache/embedpool"),
        ({}, "/home/u/.cache/embedpool"),
    ],
)
def test_the_cache_is_where_caches_are_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], place: str
) -> None:
    for name in ("CACHE_DIRECTORY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/u"} | environ).items():
        monkeypatch.setenv(name, value)
    assert Config().cache_path() == Path(place)
    assert Config(cache="/c").cache_path() == Path("/c")
    assert Config(cache="c").cache_path() == Path.cwd() / "c", "workers start elsewhere"


# ── endpoints ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("url", ["ipc:///run/x/e.sock", "tcp://127.0.0.1:5555", "tcp://localhost:5555", "tcp://[::1]:5555"])
def test_endpoints_of_this_machine_are_taken(url: str) -> None:
    assert load({"endpoint": url}, environ={}).endpoint_url() == url


@pytest.mark.parametrize("host", ["0.0.0.0:5555", "192.168.1.4:5555", "*:5555", "pool:5555"])
def test_tcp_beyond_loopback_is_refused(host: str) -> None:
    _refused(f"tcp://{host}", "not on loopback", "127.0.0.1", flags={"endpoint": f"tcp://{host}"})


@pytest.mark.parametrize("url", ["ipc://a.sock", "ipc://@abstract", "inproc://x", "http://127.0.0.1:1", "/run/e.sock"])
def test_other_endpoints_are_refused(url: str) -> None:
    _refused(url, "ipc:///PATH", "tcp://127.0.0.1:PORT", flags={"endpoint": url})


@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_socket_path_is_measured_in_bytes(letter: str) -> None:
    longest = "/" + "x" * (LONGEST_SOCKET_PATH - 1 - len(letter.encode())) + letter
    assert load({"endpoint": "ipc://" + longest}, environ={}).endpoint == "ipc://" + longest
    _refused("/x" + longest[1:], "longer than 107 bytes", "--runtime-dir", flags={"endpoint": "ipc:///x" + longest[1:]})
    _refused("longer than 107 bytes", flags={"runtime_dir": "/tmp/" + 100 * letter})


def test_a_bad_endpoint_says_where_it_came_from() -> None:
    _refused("from EMBEDPOOL_ENDPOINT", environ={"EMBEDPOOL_ENDPOINT": "tcp://10.0.0.1:5555"})


@pytest.mark.parametrize("port", ["", ":", ":http", ":-1", ":65536"])
def test_a_port_that_is_no_port_is_refused(port: str) -> None:
    _refused("PORT", flags={"endpoint": f"tcp://127.0.0.1{port}"})


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("environ", "root", "run_is_tmpfs", "place"),
    [
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/5"}, True, True, "/run/a"),
        ({"XDG_RUNTIME_DIR": "/run/user/5"}, True, True, "/run/user/5/embedpool"),
        ({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": ""}, True, True, "/run/embedpool"),
        ({}, True, False, "/dev/shm/embedpool-0"),
        ({}, False, True, "/dev/shm/embedpool-5"),
    ],
)
def test_the_runtime_directory_is_the_first_that_there_is(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], root: bool, run_is_tmpfs: bool, place: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0 if root else 5)
    monkeypatch.setattr(config, "is_tmpfs", lambda path: run_is_tmpfs and path == Path("/run"))
    assert default_runtime_dir(environ) == Path(place)


@pytest.mark.parametrize(
    ("environ", "sockets", "url"),
    [
        (
            {"EMBEDPOOL_ENDPOINT": "tcp://127.0.0.1:1", "EMBEDPOOL_RUNTIME_DIR": "/o"},
            ["/o", "/u/embedpool"],
            "tcp://127.0.0.1:1",
        ),
        ({"EMBEDPOOL_RUNTIME_DIR": "/o"}, ["/u/embedpool", "/run/embedpool"], "ipc:///o/embedpool.sock"),
        ({}, ["/u/embedpool", "/run/embedpool"], "ipc:///u/embedpool/embedpool.sock"),
        ({}, ["/run/embedpool"], "ipc:///run/embedpool/embedpool.sock"),
        ({}, [], "ipc:///u/embedpool/embedpool.sock"),
    ],
)
def test_a_client_finds_the_nearest_socket(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], sockets: list[str], url: str
) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: str(self) in [f"{place}/embedpool.sock" for place in sockets])
    assert find_endpoint({"XDG_RUNTIME_DIR": "/u"} | environ) == url


def test_shared_memory_is_a_tmpfs_and_proc_is_not() -> None:
    assert is_tmpfs(Path("/dev/shm/some/where"))
    assert not is_tmpfs(Path("/proc"))


@pytest.mark.parametrize(
    ("path", "memory"), [("/run/a", True), ("/runs", False), ("/run/disk/a", False), ("/mnt/a", True), ("/other", False)]
)
def test_the_innermost_and_latest_mount_decides(monkeypatch: pytest.MonkeyPatch, path: str, memory: bool) -> None:
    mounts = [("/", "ext4"), ("/run", "tmpfs"), ("/run/disk", "xfs"), ("/mnt", "ext4"), ("/mnt", "ramfs")]
    table = "\n".join(f"1 2 0:3 / {place} rw shared:4 - {kind} source rw" for place, kind in mounts)
    monkeypatch.setattr(Path, "read_text", lambda _: table)
    assert is_tmpfs(Path(path)) is memory


def test_a_place_where_this_user_may_not_look_is_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connecting to it then says what is missing; that there is no pool would be wrong."""

    def exists(path: Path) -> bool:
        if path.is_relative_to("/run/embedpool"):
            raise PermissionError(13, "Permission denied")
        return False

    monkeypatch.setattr(Path, "exists", exists)
    assert find_endpoint({"XDG_RUNTIME_DIR": "/run/user/1"}) == "ipc:///run/embedpool/embedpool.sock"
