"""The files of the service, made from the templates beside this module. No decision about this machine: see install."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

HOLE = re.compile(r"\{\{(\w+)\}\}")
DROP_INS = ("jetson-gpu.conf", "openvino.conf")  # for the one pool, and only where asked for
NAMES = ("embedpool.service", "embedpool@.service", "sysusers.conf", "tmpfiles.conf", "embedpool.env", *DROP_INS)
UNITS = "etc/systemd/system"
ONE, MANY = "embedpool.service", "embedpool@.service"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How the pool is to run. `command` starts `embedpool`, as a unit's ExecStart has it; `clients` are users of other
    services, to be members of the group."""

    command: str = "/opt/embedpool/bin/embedpool"
    user: str = "embedpool"
    group: str = "embedpool"
    clients: tuple[str, ...] = ()
    memory_max: str = "80%"


@dataclass(frozen=True, slots=True)
class File:
    """`name` is one of NAMES, `path` is relative to the root. `theirs`: it is the administrator's once it is there."""

    name: str
    path: str
    text: str
    mode: int = 0o644
    theirs: bool = False


def render(service: Service) -> list[File]:
    """All files, in the order of NAMES."""
    users = _filled("sysusers.conf", {"users": "\n".join(_users(service))})
    return [
        File(ONE, f"{UNITS}/{ONE}", _unit(service, ONE)),
        File(MANY, f"{UNITS}/{MANY}", _unit(service, MANY)),
        File("sysusers.conf", "etc/sysusers.d/embedpool.conf", users),
        File("tmpfiles.conf", "etc/tmpfiles.d/embedpool.conf", _filled("tmpfiles.conf", {"group": service.group})),
        File("embedpool.env", "etc/embedpool/embedpool.env", _filled("embedpool.env", {}), 0o640, theirs=True),
        *(File(name, f"{UNITS}/{ONE}.d/{name}", _filled(name, {})) for name in DROP_INS),
    ]


def _unit(service: Service, name: str) -> str:
    common = "EnvironmentFile=-/etc/embedpool/embedpool.env"
    of_one = {
        "title": "One pool of workers that serves text embeddings to this machine.",
        "description": "Text embeddings (embedpool)",
        "environment_files": common,
        "runtime": "embedpool",
    }
    of_many = {
        "title": "Several pools: `systemctl start embedpool@code` reads /etc/embedpool/code.env, after what all share.",
        "description": "Text embeddings (embedpool, %i)",
        "environment_files": f"{common}\nEnvironmentFile=-/etc/embedpool/%i.env",
        "runtime": "embedpool-%i",
    }
    own = {"name": name, "command": service.command, "user": service.user, "group": service.group}
    own["memory_max"] = service.memory_max
    return _filled(ONE, {**own, **(of_one if name == ONE else of_many)})


def _users(service: Service) -> list[str]:
    """Lines of sysusers.d(5). A user brings a group of the same name along."""
    home = "/var/cache/embedpool"  # where libraries look for what is theirs may be written
    lines = [f'u {service.user} - "embedpool text embeddings" {home}']
    if service.group != service.user:
        lines.append(f"g {service.group} -")
    return lines + [f"m {client} {service.group}" for client in service.clients]


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Raises KeyError for a hole that nothing fills."""
    text = files("embedpool.units").joinpath("templates", template).read_text(encoding="utf-8")
    return HOLE.sub(lambda hole: values[hole[1]], text)
