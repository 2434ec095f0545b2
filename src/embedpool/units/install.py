"""The service's files on this machine: for which interpreter, and where to. Only writes files; `systemctl` is the
administrator's to call."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from embedpool.errors import ConfigError
from embedpool.units.render import File, Service

Outcome: TypeAlias = Literal["written", "unchanged", "kept: yours"]

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # by ProtectHome and PrivateTmp, systemd.exec(5)
PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./+-]+")  # nothing that a unit's command line reads as more than itself
SIZE = re.compile(r"[0-9]+[KMGT%]?|infinity")
AS_MODULE = " -P -m embedpool"
USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")  # systemd's "strict mode", https://systemd.io/USER_NAMES


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of one file."""

    path: Path
    outcome: Outcome


def own_command() -> str:
    """How a unit starts the embedpool that runs now: its script, or its module where it has none."""
    script = Path(sys.prefix, "bin", "embedpool")
    return str(script) if script.exists() else f"{sys.executable}{AS_MODULE}"


def out_of_sight(command: str) -> str:
    """Why a hardened unit could not run it, in a sentence, "" if it could. The interpreter may lie elsewhere than its
    environment."""
    program = command.split()[0]
    interpreters = [sys.executable, os.path.realpath(sys.executable), sys.base_prefix] if command == own_command() else []
    for path in (program, *interpreters):
        if any(Path(path).is_relative_to(place) for place in HIDDEN):
            return (
                f"a service does not see {path}: make it an environment of its own, of an interpreter that every user can run"
                " (/usr/bin/python3 -m venv /opt/embedpool && /opt/embedpool/bin/pip install embedpool)"
            )
    return ""


def check(service: Service) -> None:
    """Raises ConfigError for what cannot stand in a unit file as it is."""
    command = service.command
    if not PLAIN_PATH.fullmatch(command.removesuffix(AS_MODULE)):
        raise ConfigError(f"{command!r} is no path that a unit can hold as it is: give --program another one")
    if not SIZE.fullmatch(service.memory_max):
        raise ConfigError(f"{service.memory_max!r} is no size: 6G, 80% or infinity")
    for name in (service.user, service.group, *service.clients):
        if not USER.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a user or group")


def place(files: Sequence[File], root: Path, *, dry_run: bool) -> list[Placed]:
    """Each file is there afterwards, whole; with `dry_run` it is only said what would be. Raises ConfigError."""
    return [Placed(root / file.path, _place(file, root / file.path, dry_run)) for file in files]


def _place(file: File, path: Path, dry_run: bool) -> Outcome:
    try:
        if path.exists():
            if file.theirs:
                return "kept: yours"
            if path.read_text(encoding="utf-8") == file.text:
                return "unchanged"
        if not dry_run:
            _write(file, path)
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise ConfigError(f"{what}; run it as root, or give --root another directory") from error
    return "written"


def _write(file: File, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    try:
        aside.write_text(file.text, encoding="utf-8")
        aside.chmod(file.mode)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
