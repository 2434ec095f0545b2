"""A worker for each GPU, neither more nor fewer, and each on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from embedpool.config import Config, visible_gpus
from embedpool.models.spec import ModelSpec
from embedpool.supervise.cores import Machine
from embedpool.supervise.gpus import count, shared_out
from embedpool.worker.spec import WorkerSpec

MACHINE = Machine(frozenset(range(8)), {cpu: frozenset({cpu}) for cpu in range(8)}, None)
TWO = ["null", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset"]
JETSON = ["null", "nvhost-gpu", "nvgpu", "nvmap"]


@pytest.mark.parametrize(
    ("devices", "visible", "found"),
    [
        (TWO, None, 2),
        (TWO, "0,1", 2),
        (TWO, "1", 1),
        (TWO, " 1 , 0 ", 2),
        (TWO, "1,7,0", 1),  # what follows a number that is none is not seen
        (TWO, "GPU-8932f937,MIG-4a6", 2),
        (TWO, "", 1),  # hidden: it is the provider that says so
        (TWO, "-1", 1),
        (["nvidia10", "nvidia2"], None, 2),
        (JETSON, None, 1),
        (JETSON, "0", 1),
        ([], None, 1),
    ],
)
def test_gpus_are_those_that_cuda_shows(devices: list[str], visible: str | None, found: int) -> None:
    assert count(devices, visible) == found


def test_there_is_a_worker_per_gpu_unless_told_otherwise() -> None:
    made = shared_out(MACHINE, Config(provider="cuda"), 2)
    assert (made.workers, made.gpus) == (((0,), (1,)), 2)
    assert made.reason == "2 workers on 2 GPUs (one per GPU)"
    asked = shared_out(MACHINE, Config(provider="cuda", workers=3), 1)
    assert (len(asked.workers), asked.gpus) == (3, 1)
    assert asked.reason == "3 workers on 1 GPU (asked for)"


def test_workers_take_turns_with_the_gpus_and_a_restarted_one_gets_its_own_again() -> None:
    model = ModelSpec(name="tiny", dim=4, max_tokens=64, prompts={}, fingerprint="f")
    spec = WorkerSpec(endpoint="ipc:///w", segments="/s", threads=1, model=model, gpus=2)
    assert [spec.forked(10 + index, index, (index,)).device for index in range(5)] == [0, 1, 0, 1, 0]
    assert spec.forked(99, 3, (0,)) == replace(spec, worker=99, cores=(0,), device=1)
    assert replace(spec, gpus=0).forked(1, 3, ()).device == 0


def test_hidden_gpus_are_known_from_the_environment() -> None:
    assert visible_gpus({}) is None
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == "1"
