"""One process alone: no torchrun, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gipo_envs.errors import UserError
from gipo_vla.distributed import group

CPU = torch.device("cpu")


def test_starts_and_stops_as_often_as_one_likes() -> None:
    group.stop()
    for _ in range(2):
        group.start(CPU)
        group.start(CPU)
        assert dist.is_initialized() and (group.rank(), group.world_size()) == (0, 1)
        group.stop()
        group.stop()
        assert not dist.is_initialized()
        # A child process would take them for torchrun's.
        assert not [name for name in group.TORCHRUN_NAMES if name in os.environ]


def test_reductions_of_one_rank_are_its_own_values(process_group: None) -> None:
    assert group.gather([1]) == [[1]] and group.from_first("x") == "x"
    tensor = torch.tensor([1.0, 2.0])
    assert group.sum_over_ranks(tensor) is tensor and tensor.tolist() == [1, 2]
    group.barrier()


def test_importing_deepspeed_leaves_stdout_alone(capfd: pytest.CaptureFixture[str]) -> None:
    group.import_deepspeed()
    assert capfd.readouterr().out == ""


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"learner\.device"):
        group.choose_device("cuda")
    assert group.choose_device("auto") == group.choose_device("cpu") == CPU


@pytest.mark.parametrize(("built_for", "says"), [(None, "GIPO_TORCH=cuda"), ("13.0", "driver for CUDA 13.0")])
def test_no_silent_fall_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built_for: str | None, says: str
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-6f0d1f1c)'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    for setting in ("auto", "cuda"):
        with pytest.raises(UserError, match=says) as refusal:
            group.choose_device(setting)
    assert "\n" not in str(refusal.value) and "learner.device=cpu" in str(refusal.value)
    assert group.choose_device("cpu") == CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert group.choose_device("auto") == CPU
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    smi.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert group.choose_device("auto") == CPU


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, None),
    ],
)
def test_blocks_of_gpu_memory_grow_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, str], expected: str | None
) -> None:
    """Before the first use of the GPU; there is none here, so a stand-in notes what torch would read."""
    monkeypatch.setattr(
        os, "environ", {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ} | own
    )
    seen: list[str | None] = []

    def first_use(_: torch.device) -> None:
        seen.append(os.environ.get("PYTORCH_ALLOC_CONF"))
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "set_device", first_use)
    monkeypatch.setattr(group, "import_deepspeed", lambda: None)
    with pytest.raises(InterruptedError):
        group.start(torch.device("cuda", 0))
    group.stop()
    assert seen == [expected]


def test_each_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert group.choose_device("auto") == torch.device("cuda", 3)
    assert group.choose_device("cpu") == CPU
