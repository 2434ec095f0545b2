"""How many GPUs a pool has, and so how many workers where they compute: one per GPU. `count` and `shared_out` are pure;
`planned` reads the machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace

from embedpool.config import Config, visible_gpus
from embedpool.models.providers import BY_NAME
from embedpool.supervise.cores import CorePlan, Machine, plan, read_machine

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


def shared_out(machine: Machine, config: Config, gpus: int) -> CorePlan:
    """A plan for workers that compute on so many GPUs: their cores are for tokens and messages."""
    made = plan(machine, config.workers or gpus, config.threads_per_worker)
    reason = f"{len(made.workers)} worker{'s' * (len(made.workers) > 1)} on {gpus} GPU{'s' * (gpus > 1)}"
    return replace(made, reason=f"{reason} ({'asked for' if config.workers else 'one per GPU'})", gpus=gpus)


def planned(config: Config) -> CorePlan:
    """The plan of a pool with these settings on this machine."""
    if not BY_NAME[config.provider].gpu:
        return plan(read_machine(), config.workers, config.threads_per_worker)
    return shared_out(read_machine(), config, count(os.listdir("/dev"), visible_gpus()))
