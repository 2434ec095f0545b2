"""A worker for each GPU, neither more nor fewer, and each on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from embedpool.config import Config, visible_gpus
from embedpool.models.spec import ModelSpec
from embedpool.supervise import gpus
from embedpool.supervise.gpus import count
from embedpool.supervise.replan import planned
from embedpool.worker.spec import WorkerSpec

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


def test_there_are_as_many_as_the_machine_has_where_they_compute_and_none_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus.os, "listdir", {"/dev": TWO}.__getitem__)
    assert [gpus.of(Config(provider=name)) for name in ("cuda", "tensorrt", "cpu", "openvino")] == [2, 2, 0, 0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus.of(Config(provider="cuda")) == 1


def test_a_pool_on_gpus_has_a_worker_for_each_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "of", lambda config: 3 if config.provider == "cuda" else 0)
    assert len(planned(Config(provider="cuda")).workers) == 3
    assert len(planned(Config(provider="cuda", workers=5)).workers) == 5
    assert len(planned(Config(workers=2)).workers) == 2


def test_workers_take_turns_with_the_gpus_and_a_restarted_one_gets_its_own_again() -> None:
    model = ModelSpec(name="tiny", dim=4, max_tokens=64, prompts={}, fingerprint="f")
    spec = WorkerSpec(endpoint="ipc:///w", segments="/s", threads=1, model=model, gpus=2)
    assert [spec.forked(10 + index, index, (index,)).device for index in range(5)] == [0, 1, 0, 1, 0]
    assert spec.forked(99, 3, (0,)) == replace(spec, worker=99, cores=(0,), device=1)
    assert replace(spec, gpus=0).forked(1, 3, ()).device == 0


def test_hidden_gpus_are_known_from_the_environment() -> None:
    assert visible_gpus({}) is None
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == "1"
