"""How many GPUs a pool has, and so how many workers where they compute: one each. `count` is pure, `of` reads the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from embedpool.config import Config, visible_gpus
from embedpool.models.providers import BY_NAME

DEVICE = re.compile(r"nvidia\d+")  # one per GPU, made by NVIDIA's driver; a Jetson's only GPU has none


def count(devices: Iterable[str], visible: str | None) -> int:
    """GPUs that CUDA will show to a worker, 1 at least: if there is none, the provider says so better.

    `devices` are the names in /dev; `visible` is CUDA_VISIBLE_DEVICES, of which entries behind an invalid one do not count
    (CUDA C++ programming guide, environment variables).
    """
    there = sum(DEVICE.fullmatch(name) is not None for name in devices)
    if visible is None:
        return max(there, 1)
    named = 0
    for each in map(str.strip, visible.split(",")):
        if not each or each.startswith("-") or (each.isdecimal() and int(each) >= max(there, 1)):
            break
        named += 1
    return max(named, 1)


def of(config: Config) -> int:
    """How many GPUs the workers of a pool with these settings share out; 0 where they compute on the processor."""
    return count(os.listdir("/dev"), visible_gpus()) if BY_NAME[config.provider].gpu else 0
