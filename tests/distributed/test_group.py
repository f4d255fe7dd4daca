"""One process alone: no torchrun, and nothing left behind."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from gipo_envs.errors import UserError
from gipo_vla.distributed import group

CPU = torch.device("cpu")
TORCHRUN_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
        assert not [name for name in TORCHRUN_NAMES if name in os.environ]


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


def test_each_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert group.choose_device("auto") == torch.device("cuda", 3)
    assert group.choose_device("cpu") == CPU
