"""The units are what an administrator trusts with a machine: what is written is what is in systemd/, nothing of it is
overwritten that is theirs, and what could not run is refused before it is written.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from embedpool import config
from embedpool.cli import systemd
from embedpool.config import default_runtime_dir, find_endpoint
from embedpool.errors import ConfigError
from embedpool.units.install import Placed, check, out_of_sight, place
from embedpool.units.render import MANY, NAMES, ONE, File, Service, render

ROOT = Path(__file__).parents[2]
RENDERED = {
    "embedpool.service": "embedpool.service",
    "embedpool@.service": "embedpool@.service",
    "sysusers.conf": "sysusers.d/embedpool.conf",
    "tmpfiles.conf": "tmpfiles.d/embedpool.conf",
    "embedpool.env": "embedpool.env.example",
    "jetson-gpu.conf": "jetson-gpu.conf",
    "openvino.conf": "openvino.conf",
}


def _files(service: Service | None = None) -> dict[str, File]:
    return {file.name: file for file in render(service or Service())}


def _settings(text: str) -> list[tuple[str, str]]:
    return [tuple(line.split("=", 1)) for line in text.splitlines() if re.match(r"[A-Za-z]+=", line)]  # type: ignore[misc]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_systemd_is_what_is_rendered_for_opt(name: str) -> None:
    committed = (ROOT / "systemd" / RENDERED[name]).read_text(encoding="utf-8")
    assert committed == _files()[name].text, f"embedpool systemd show --program /opt/embedpool/bin/embedpool {name}"


def test_every_file_has_a_name_and_nothing_is_left_to_fill() -> None:
    assert tuple(_files()) == NAMES
    assert len(list((ROOT / "systemd").rglob("*.*"))) - 2 == len(NAMES)  # but for the directories sysusers.d and tmpfiles.d
    assert not [file.name for file in _files().values() if re.search(r"\{\{|\}\}", file.text)]


def test_program_user_group_and_clients_are_where_they_belong() -> None:
    service = Service(
        command="/srv/e/bin/embedpool", user="emb", group="vectors", clients=("www-data", "akidb"), memory_max="6G"
    )
    found = _files(service)
    for name in (ONE, MANY):
        settings = _settings(found[name].text)
        assert ("ExecStart", "/srv/e/bin/embedpool serve") in settings
        assert ("ExecReload", "/srv/e/bin/embedpool reload") in settings
        assert {("User", "emb"), ("Group", "vectors"), ("MemoryMax", "6G")} <= set(settings)
    lines = found["sysusers.conf"].text.splitlines()[1:]
    assert lines == [
        'u emb - "embedpool text embeddings" /var/cache/embedpool',
        "g vectors -",
        "m www-data vectors",
        "m akidb vectors",
    ]
    assert "d /etc/embedpool 0750 root vectors -" in found["tmpfiles.conf"].text


def test_instances_share_models_and_nothing_else() -> None:
    one, many = dict(_settings(_files()[ONE].text)), dict(_settings(_files()[MANY].text))
    assert one["CacheDirectory"] == many["CacheDirectory"] == "embedpool"
    assert (one["RuntimeDirectory"], many["RuntimeDirectory"]) == ("embedpool", "embedpool-%i")
    assert "EnvironmentFile=-/etc/embedpool/%i.env" in _files()[MANY].text
    assert "EMBEDPOOL_RUNTIME_DIR=%t/embedpool-%i " in _files()[MANY].text


def test_where_the_unit_puts_its_socket_is_where_clients_look() -> None:
    one = dict(_settings(_files()[ONE].text))
    assert str(default_runtime_dir({"RUNTIME_DIRECTORY": f"/run/{one['RuntimeDirectory']}"})) == "/run/embedpool"
    assert find_endpoint({"EMBEDPOOL_RUNTIME_DIR": "/run/embedpool"}) == "ipc:///run/embedpool/embedpool.sock"


@pytest.mark.parametrize("name", [ONE, MANY])
def test_settings_that_would_break_the_pool_are_not_there(name: str) -> None:
    settings = _settings(_files()[name].text)
    names = {key for key, _ in settings}
    assert not {"PrivateUsers", "ProcSubset", "DynamicUser", "PrivateNetwork"} & names
    filters = [value for key, value in settings if key == "SystemCallFilter"]
    assert filters.index("~@privileged @resources") < filters.index("sched_setaffinity sched_setscheduler")
    assert {("Type", "notify"), ("KillMode", "mixed"), ("OOMPolicy", "continue"), ("UMask", "0027")} <= set(settings)


def test_every_variable_of_the_example_and_the_units_is_a_setting() -> None:
    known = {config.variable(row.name) for row in config.rows()} | {"EMBEDPOOL_CONFIG"}
    for file in _files().values():
        assert set(re.findall(r"\bEMBEDPOOL_[A-Z_]+(?==)", file.text)) <= known, file.name


def test_the_program_that_systemd_has_finds_no_fault(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the units are not verified: systemd-analyze is not installed")
    place([_files(Service(command="/bin/true"))[ONE]], tmp_path, dry_run=False)
    unit = str(tmp_path / _files()[ONE].path)
    environ = {**os.environ, "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", unit]  # 1.5 of 10
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stdout


# ── installing ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _outcomes(placed: list[Placed]) -> dict[str, str]:
    return {each.path.name: each.outcome for each in placed}


def test_what_was_installed_is_left_alone_the_second_time_and_settings_for_ever(tmp_path: Path) -> None:
    assert set(_outcomes(place(render(Service()), tmp_path, dry_run=False)).values()) == {"written"}
    settings = tmp_path / "etc/embedpool/embedpool.env"
    assert settings.stat().st_mode & 0o777 == 0o640
    settings.write_text("EMBEDPOOL_WORKERS=3\n")
    (tmp_path / "etc/systemd/system" / ONE).write_text("of an older version\n")
    outcomes = _outcomes(place(render(Service()), tmp_path, dry_run=False))
    assert outcomes.pop(ONE) == "written"
    assert outcomes.pop("embedpool.env") == "kept: yours"
    assert set(outcomes.values()) == {"unchanged"}
    assert settings.read_text() == "EMBEDPOOL_WORKERS=3\n"
    assert (tmp_path / "etc/systemd/system" / ONE).read_text() == _files()[ONE].text
    assert not list(tmp_path.rglob(".*"))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert set(_outcomes(place(render(Service()), tmp_path, dry_run=True)).values()) == {"written"}
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file where a directory should be")
    with pytest.raises(ConfigError, match=r"cannot be written: .*; run it as root, or give --root") as caught:
        place(render(Service()), tmp_path, dry_run=False)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("command", ["/home/anna/venv/bin/embedpool", "/root/e/bin/embedpool", "/tmp/e/bin/embedpool"])
def test_a_program_that_the_service_would_not_see_is_refused(command: str) -> None:
    assert f"a service does not see {command}" in out_of_sight(command)
    with pytest.raises(ConfigError, match="does not see"):
        _run("install", "--program", command)


@pytest.mark.parametrize("command", ["/opt/embedpool/bin/embedpool", "/usr/local/bin/embedpool", "/homes/bin/embedpool"])
def test_a_program_elsewhere_is_not(command: str) -> None:
    assert out_of_sight(command) == ""


@pytest.mark.parametrize(
    "command", ["/opt/my pool/embedpool", "/opt/100%/embedpool", "embedpool", "/opt/$HOME/e", "/opt/a\nUser=root"]
)
def test_a_path_that_a_unit_would_read_otherwise_is_refused(command: str) -> None:
    with pytest.raises(ConfigError, match="--program"):
        check(Service(command=command))


@pytest.mark.parametrize("name", ["Root", "a b", "", "x\nu root", "www:data", "-"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a user or group"):
        check(Service(clients=(name,)))


@pytest.mark.parametrize("size", ["", "much", "6G\nUser=root", "-1"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="no size"):
        check(Service(memory_max=size))


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    systemd.arguments(parser)
    return systemd.run(parser.parse_args(words))


def test_install_says_what_it_wrote_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = ["--program", "/opt/embedpool/bin/embedpool"]
    assert _run("install", *program, "--root", str(tmp_path), "--client", "www-data") == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/etc/systemd/system/{ONE}  written" in said
    assert "systemctl enable --now embedpool" in said
    assert not (tmp_path / "etc/systemd/system" / f"{ONE}.d").exists()
    assert "m www-data embedpool" in (tmp_path / "etc/sysusers.d/embedpool.conf").read_text()
    assert _run("install", *program, "--root", str(tmp_path), "--jetson", "--dry-run") == 0
    assert "jetson-gpu.conf  would be written" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [[], ["--jetson"], ["--openvino"], ["--jetson", "--openvino"]])
def test_a_drop_in_is_installed_only_where_it_was_asked_for(tmp_path: Path, asked: list[str]) -> None:
    assert _run("install", "--program", "/opt/embedpool/bin/embedpool", "--root", str(tmp_path), *asked) == 0
    there = {path.name for path in (tmp_path / "etc/systemd/system" / f"{ONE}.d").glob("*")}
    assert there == {name for name, word in (("jetson-gpu.conf", "--jetson"), ("openvino.conf", "--openvino")) if word in asked}


def test_show_prints_one_file_as_it_is_or_all_with_their_places(capsys: pytest.CaptureFixture[str]) -> None:
    program = ["--program", "/opt/embedpool/bin/embedpool"]
    assert _run("show", ONE, *program) == 0
    assert capsys.readouterr().out == _files()[ONE].text
    assert _run("show", *program) == 0
    said = capsys.readouterr().out
    assert [f"# ── /{file.path}\n" in said for file in _files().values()] == [True] * len(NAMES)
