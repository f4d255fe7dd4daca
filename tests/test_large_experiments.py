"""The experiments for H200 nodes: what they mean, and that they fit, without any GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gipo_vla import config
from gipo_vla.config import Config
from gipo_vla.imitation import origins
from gipo_vla.imitation import settings as sft_settings
from gipo_vla.memory import GIB, Limits, plan_rank, problem
from gipo_vla.pipeline import environment_spec, plan
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings

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


def load(experiment: str) -> Config:
    return config.load("train", [f"experiment={experiment}"])


def policy_of(settings: Any) -> OpenVlaOftSettings:
    assert isinstance(settings.policy, OpenVlaOftSettings)
    return settings.policy


def test_there_are_no_others() -> None:
    found = {name for name in config.groups()["experiment"] if "oft7b" in name}
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
    assert problem(settings, plan_rank(settings, spec, CUDA, ranks), limits) is None
    tokens = SimpleNamespace(chunk=policy_of(settings).chunk, action_dims=spec.action_size, bins=256)
    plans = plan(settings, tokens, spec, ranks)  # type: ignore[arg-type]
    assert plans.layout.fields["tokens"].shape == (8, 8, 7 if experiment.startswith("libero") else 4)
    assert spec.observation["images"].shape == (1, 224, 224, 3)
    assert len(spec.tasks) == 10
    assert 5 <= plans.staleness.mean_lag_iterations <= 7
    assert 1.5 < plans.staleness.samples_per_transition < 2.5


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
    cloning = sft_settings.load(["experiment=metaworld_mt10_oft7b_sft"])
    settings = load("metaworld_mt10_oft7b")
    assert settings.init_from == cloning.run_dir
    assert settings.env.camera == cloning.env.camera and settings.env.task == cloning.env.task
    there, here = (config.to_dict(policy_of(one)) for one in (cloning, settings))
    assert origins._differences(there, here) == []
    for ranks, limits in ((8, NODE), (1, ONE)):
        need = plan_rank(cloning, environment_spec(cloning), CUDA, ranks)
        assert problem(cloning, need, limits) is None
