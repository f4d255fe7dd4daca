"""How many at once, and who gets which GPU."""

from __future__ import annotations

import pytest

from gipo_envs.errors import UserError
from gipo_vla.sweeping.process import at_once, cores, gpus, gpus_of
from gipo_vla.sweeping.settings import SweepSettings
from tests.conftest import MakeConfig


@pytest.mark.parametrize(
    "settings, overrides, cores_here, gpus_here, expected",
    [
        ({}, (), 2, 0, 2),
        ({}, ("rollout.workers=2",), 2, 0, 1),
        ({}, ("rollout.workers=4",), 2, 0, 1),
        ({}, ("rollout.workers=2",), 64, 0, 32),
        ({}, ("learner.threads=4",), 64, 0, 16),
        ({"jobs": 7}, ("rollout.workers=2",), 2, 0, 7),
        ({}, (), 64, 8, 8),
        ({}, ("rollout.workers=16",), 64, 8, 4),
        ({}, ("learner.device=cpu",), 64, 8, 64),
        ({"launch": "torchrun", "nproc_per_node": 4}, (), 64, 8, 2),
        ({"launch": "torchrun", "nproc_per_node": 4}, (), 64, 0, 16),
    ],
)
def test_as_many_as_the_machine_feeds(
    make_config: MakeConfig,
    settings: dict[str, object],
    overrides: tuple[str, ...],
    cores_here: int,
    gpus_here: int,
    expected: int,
) -> None:
    sweep = SweepSettings(**settings)  # type: ignore[arg-type]
    assert at_once(sweep, [make_config(*overrides)], cores_here, gpus_here) == expected


def test_a_job_that_needs_more_gpus_than_there_are_is_refused(make_config: MakeConfig) -> None:
    sweep = SweepSettings(launch="torchrun", nproc_per_node=8)
    with pytest.raises(UserError, match="there are 4 GPUs"):
        at_once(sweep, [make_config()], 64, 4)
    assert at_once(sweep, [make_config("learner.device=cpu")], 64, 4) == 8


def test_gpus_are_divided_and_then_shared() -> None:
    eight = [str(index) for index in range(8)]
    assert [gpus_of(slot, 1, eight) for slot in (0, 7, 8)] == [["0"], ["7"], ["0"]]
    assert [gpus_of(slot, 4, eight) for slot in (0, 1, 2)] == [eight[:4], eight[4:], eight[:4]]
    assert gpus_of(3, 1, []) == []


def test_a_scheduler_says_which_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, MIG-bb,-1,3")
    assert gpus() == ["GPU-aa", "MIG-bb"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus() == []
    assert cores() >= 1
