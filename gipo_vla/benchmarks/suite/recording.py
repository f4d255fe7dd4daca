"""What stands in for a simulator that is not installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from gipo_envs import make_spec, recorded
from gipo_envs.errors import UserError
from gipo_envs.libero import assets
from gipo_vla.benchmarks.policy import PROPRIO_SIZE, Trial
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings
from gipo_vla.settings.schema import TrainingSettings

FRAMES = 32


def observed(settings: TrainingSettings, folder: Path) -> tuple[TrainingSettings, str]:
    """The settings with an environment that can be made here, and what that is: their own simulator, the
    recording that they name, or random pixels, which are written to a folder."""
    env = settings.env
    try:
        if env.family.startswith("libero"):
            assets.find(env.assets, download=False)
        make_spec(env)
    except UserError as error:
        if env.family == "recorded" and env.assets is not None:
            raise
        why = "" if env.family == "recorded" else f" ({str(error).partition(':')[0]})"
    else:
        return settings, f"recorded observations in {env.assets}" if env.family == "recorded" else env.family
    write_random(settings, folder)
    policy = settings.policy
    assert isinstance(policy, OpenVlaOftSettings)
    stand_in = replace(
        env,
        family="recorded",
        task="all",
        observations=("images", "proprio") if policy.proprio else ("images",),
        reward="sparse",
        reward_scale=None,
        step_limit=None,
        assets=str(folder),
    )
    return replace(settings, env=stand_in), f"random pixels{why}"


def write_random(settings: TrainingSettings, folder: Path) -> None:
    """Write a recording of random pixels, and proprioception, of the size that the policy looks at."""
    policy = settings.policy
    assert isinstance(policy, OpenVlaOftSettings)
    spec = Trial(policy, torch.device("cpu"), 1, 1, 1.0, 7).spec
    rng = np.random.default_rng(settings.seed)
    shape = (FRAMES, *spec.observation["images"].shape)
    seen = {"images": rng.integers(0, 256, shape, np.uint8)}
    if policy.proprio:
        seen["proprio"] = rng.normal(size=(FRAMES, PROPRIO_SIZE)).astype(np.float32)
    recorded.write(folder, spec, seen)
