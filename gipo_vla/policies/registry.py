"""From settings to a policy."""

from __future__ import annotations

from typing import Any

import torch
from gipo_envs import EnvironmentSpec

from gipo_vla.policies.base import Policy
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings


def build(settings: Any, spec: EnvironmentSpec, device: torch.device) -> Policy:
    """The policy that ``settings`` belongs to, on ``device``."""
    if isinstance(settings, MlpSettings):
        return MlpPolicy(settings, spec).to(device)
    raise TypeError(f"no policy has settings of type {type(settings).__name__}")
