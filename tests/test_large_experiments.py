"""The experiments for H200 nodes: what they mean, and that they fit, without any GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gipo_envs import recorded
from gipo_vla.assembly import environment_spec
from gipo_vla.imitation import origins
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.run.memory import GIB, Limits
from gipo_vla.run.plan import plan_run
from gipo_vla.settings import composition, runs
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.metrics import read_json_lines
from gipo_vla.train import resolve, train
from tests.conftest import needs_libero

pytestmark = needs_libero

CUDA = torch.device("cuda")
H200 = 139 * GIB
NODE, ONE = Limits(1000 * GIB, H200, ranks=8), Limits(128 * GIB, H200)
"""Less host memory than such a node usually has; and a share of one."""
PUBLISHED = {
    "libero_spatial": "libero-spatial",
    "libero_object": "libero-object",
    "libero_goal": "libero-goal",
    "libero_10": "libero10",
}
FAMILIES = (*PUBLISHED, "metaworld_mt10")
EXPERIMENTS = [f"{family}_oft7b{suffix}" for family in FAMILIES for suffix in ("", "_1gpu")]


def load(experiment: str) -> TrainingSettings:
    return runs.load("train", [f"experiment={experiment}"])


def policy_of(settings: Any) -> OpenVlaOftSettings:
    assert isinstance(settings.policy, OpenVlaOftSettings)
    return settings.policy


def test_there_are_no_others() -> None:
    found = {name for name in composition.groups()["experiment"] if "oft7b" in name}
    assert found == {*EXPERIMENTS, "metaworld_mt10_oft7b_sft"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_settings_are_those_of_the_method(experiment: str) -> None:
    settings, learner = load(experiment), load(experiment).learner
    assert settings.experiment == experiment
    assert learner.batch_segments * settings.replay.segment_length == 256
    assert (learner.policy_learning_rate, learner.value_learning_rate) == (1e-5, 1e-4)
    assert learner.zero_stage == 2
    assert settings.rollout.temperature == 1.6
    assert (settings.objective.name, getattr(settings.objective, "sigma", None)) == ("gipo", 1.0)
    policy = policy_of(settings)
    assert (policy.training, policy.lora.rank, policy.random_weights) == ("lora", 32, False)
    assert policy.architecture.hidden == 4096


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_fits_the_machine_and_its_data_are_stale(experiment: str) -> None:
    settings = load(experiment)
    ranks, limits = (1, ONE) if experiment.endswith("_1gpu") else (8, NODE)
    spec = environment_spec(settings)
    plan = plan_run(settings, spec, ranks, CUDA)
    assert plan.problem(limits) is None
    assert plan.collection is not None and plan.lag is not None
    assert plan.collection.layout.fields["tokens"].shape == (
        8,
        8,
        7 if experiment.startswith("libero") else 4,
    )
    assert spec.observation["images"].shape == (1, 224, 224, 3)
    assert len(spec.tasks) == 10
    assert 5 <= plan.lag.mean_iterations <= 7
    assert 1.5 < plan.lag.samples_per_transition < 2.5


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_names_what_it_starts_from(experiment: str) -> None:
    settings, family = load(experiment), experiment.partition("_oft7b")[0]
    policy = policy_of(settings)
    if family == "metaworld_mt10":
        assert policy.checkpoint == "openvla/openvla-7b"
        assert settings.init_from == "runs/metaworld_mt10_oft7b_sft"
    else:
        assert policy.checkpoint == f"Haozhan72/Openvla-oft-SFT-{PUBLISHED[family]}-traj1"
        assert policy.unnorm_key == f"{family}_no_noops" and settings.init_from is None


@pytest.mark.parametrize("family", FAMILIES)
def test_one_gpu_makes_the_same_updates(family: str) -> None:
    many, one = load(f"{family}_oft7b"), load(f"{family}_oft7b_1gpu")
    for section in ("policy", "objective", "credit", "replay", "learner", "env", "eval"):
        assert getattr(many, section) == getattr(one, section)
    assert many.rollout.env_steps == one.rollout.env_steps


def test_mt10_starts_from_what_its_cloning_leaves() -> None:
    cloning = runs.load_sft(["experiment=metaworld_mt10_oft7b_sft"])
    settings = load("metaworld_mt10_oft7b")
    assert settings.init_from == cloning.run_dir
    assert settings.env.camera == cloning.env.camera and settings.env.task == cloning.env.task
    assert origins.differences(policy_of(cloning), policy_of(settings)) == []
    for ranks, limits in ((8, NODE), (1, ONE)):
        assert plan_run(cloning, environment_spec(cloning), ranks, CUDA).problem(limits) is None


SMALL = (
    *("policy.checkpoint=null", "policy.random_weights=true"),
    *("policy.architecture.hidden=32", "policy.architecture.intermediate=64", "policy.architecture.layers=2"),
    *("policy.architecture.heads=4", "policy.architecture.key_value_heads=4"),
    *("policy.architecture.vocabulary=1088", "policy.architecture.prompt_end=767"),
    *("policy.architecture.dino={width: 32, depth: 2, heads: 4, mlp: 64}",),
    *("policy.architecture.siglip={width: 32, depth: 2, heads: 4, mlp: 64}",),
    *("policy.lora.rank=4", "policy.value.width=32", "policy.value.heads=4"),
    *("rollout.workers=1", "rollout.envs_per_worker=4", "rollout.env_steps=256", "env.step_limit=64"),
    *("replay.capacity=256", "learner.updates=2", "learner.batch_segments=4", "learner.value_only_updates=1"),
    *("learner.device=cpu", "iterations=2", "eval.episodes_per_task=1", "eval.video=false"),
    *("telemetry.wandb=off", "telemetry.report=false"),
)
"""The same experiment with a network, a batch and a simulation that a CPU can afford."""


@pytest.mark.medium
@pytest.mark.parametrize(
    "experiment, extra",
    [
        ("libero_spatial_oft7b_1gpu", ("policy.unnorm_key=null",)),
        ("metaworld_mt10_oft7b_1gpu", ("init_from=null",)),
    ],
)
def test_it_trains_from_random_weights_on_recorded_observations(
    experiment: str, extra: tuple[str, ...], tmp_path: Path
) -> None:
    spec = environment_spec(load(experiment))
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 224, 224, 3), dtype=np.uint8)
    recorded.write(tmp_path / "recording", spec, {"images": images})
    elsewhere = ("env=recorded", "env.task=all", f"env.assets={tmp_path / 'recording'}")
    folder = train(
        resolve([f"experiment={experiment}", *elsewhere, *SMALL, *extra, f"run_dir={tmp_path / 'run'}"])
    )
    rows = read_json_lines(folder / "metrics.jsonl")
    assert [row["updates"] for row in rows] == [2, 4]
    assert rows[-1]["gradient_norm/policy"] > 0
    assert rows[-1]["staleness/numerical_floor_max"] <= 1e-4
