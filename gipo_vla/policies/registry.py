"""From settings to a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gipo_envs import EnvironmentSpec
from gipo_vla.policies.base import Policy
from gipo_vla.policies.mlp import MlpPolicy, MlpSettings
from gipo_vla.policies.openvla_oft.settings import OpenVlaOftSettings


def network_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that ``learner.precision`` stands for."""
    if precision == "auto":
        precision = "float32" if device.type == "cpu" else "bfloat16"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def build(
    settings: Any,
    spec: EnvironmentSpec,
    device: torch.device,
    precision: str = "auto",
    cloning: bool = False,
    statistics: Mapping[str, Any] | None = None,
    reinforced: bool = False,
) -> Policy:
    """The policy that ``settings`` belongs to, on ``device``.

    Args:
        cloning: its weights are cloned from demonstrations, or are about to be; see ``openvla_oft.build``.
        statistics: of the demonstrations, as in ``dataset_statistics.json``, for policies that normalise by
            them.
        reinforced: its actions are to be sampled and reinforced; see ``openvla_oft.build``.
    """
    if isinstance(settings, MlpSettings):
        return MlpPolicy(settings, spec).to(device)
    if isinstance(settings, OpenVlaOftSettings):
        # Imported here: transformers takes seconds that a small policy need not wait for.
        from gipo_vla.policies.openvla_oft import build as build_openvla_oft

        return build_openvla_oft(
            settings,
            spec,
            device,
            network_dtype(precision, device),
            cloning=cloning,
            statistics=statistics,
            reinforced=reinforced,
        )
    raise TypeError(f"no policy has settings of type {type(settings).__name__}")
