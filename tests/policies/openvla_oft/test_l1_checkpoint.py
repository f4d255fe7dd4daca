"""A checkpoint with a continuous head: training refuses it at once, evaluation takes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.assembly import environment_spec, policy_at
from gipo_vla.evaluate import evaluate
from gipo_vla.export import export_policy
from gipo_vla.policies.openvla_oft import Architecture, OpenVlaOftSettings, construction
from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
from gipo_vla.run.resume import Start
from gipo_vla.settings import runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.train import train
from tests.conftest import needs_libero

pytestmark = needs_libero

OVERRIDES = (
    "experiment=point_reach",
    "env=libero_spatial",
    "env.task=0",
    "env.step_limit=16",
    "env.camera.names=[agentview]",
    "env.camera.height=56",
    "env.camera.width=56",
    "env.camera.quality=fast",
    "env.camera.format=rotated",
    "policy=openvla_oft_7b",
    "rollout.workers=1",
    "rollout.envs_per_worker=1",
    "replay.segment_length=2",
    "learner.device=cpu",
    "eval.episodes_per_task=1",
    "telemetry.wandb=off",
)


@pytest.fixture
def settings(l1_folder: Path, fixture_architecture: Architecture, tmp_path: Path) -> TrainingSettings:
    run = runs.load("train", [*OVERRIDES, f"run_dir={tmp_path / 'run'}"])
    policy = OpenVlaOftSettings(architecture=fixture_architecture, checkpoint=str(l1_folder))
    return dataclasses.replace(run, policy=policy)


def test_training_refuses_it_before_anything_is_started(
    settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_yet(*_: object, **__: object) -> None:
        raise AssertionError("weights were read or workers started before the refusal")

    monkeypatch.setattr(construction.reading, "read_weights", not_yet)
    monkeypatch.setattr("gipo_vla.pipeline.WorkerPool", not_yet)
    monkeypatch.setattr("gipo_envs.gl.choose", lambda: ("none", "needed"))
    with pytest.raises(UserError) as error:
        train(Start(settings))
    assert "L1 head" in str(error.value) and "gipo_vla.sft" in str(error.value)
    assert "\n" not in str(error.value)
    assert settings.run_dir is not None and not Path(settings.run_dir).exists()


@pytest.mark.medium
def test_evaluation_takes_it_greedily(settings: TrainingSettings) -> None:
    evaluation = evaluate(settings, None)
    assert evaluation["mode"] == "greedy" and evaluation["episodes"] == 1
    assert "sampled" not in evaluation
    sampled = dataclasses.replace(settings, eval=dataclasses.replace(settings.eval, mode="sampled"))
    with pytest.raises(UserError, match=r"eval\.mode is sampled"):
        evaluate(sampled, None)


def test_export_takes_it(settings: TrainingSettings, tmp_path: Path) -> None:
    spec, cpu = environment_spec(settings), torch.device("cpu")
    policy = policy_at(settings, spec, cpu, None)
    assert isinstance(policy, OpenVlaOftPolicy) and policy.l1_head is not None
    export_policy(policy, tmp_path / "again")
    there = dataclasses.replace(settings.policy, checkpoint=str(tmp_path / "again"))
    again = policy_at(dataclasses.replace(settings, policy=there), spec, cpu, None)
    assert isinstance(again, OpenVlaOftPolicy) and again.head == "l1" and again.l1_head is not None
    for name, tensor in policy.l1_head.state_dict().items():
        assert torch.equal(tensor, again.l1_head.state_dict()[name]), name
