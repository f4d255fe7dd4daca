"""A policy as a folder in the published OpenVLA-OFT layout.

The folder holds merged weights that the original evaluation scripts load, the adapter in peft's format, the
statistics, tokenizer and small heads, and in files of its own what the published layout has no place for.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gipo_envs.errors import UserError
from gipo_vla.policies.openvla_oft import ExportSummary, OpenVlaOftPolicy, export


def export_policy(policy: nn.Module, folder: str | Path, base: str | Path | None = None) -> ExportSummary:
    """Write a policy.

    Args:
        folder: new or empty.
        base: the checkpoint that the policy started from, if it has moved since.

    Raises:
        UserError: the policy has no published layout, the folder is in use, or the base is gone.
    """
    if not isinstance(policy, OpenVlaOftPolicy):
        raise UserError(
            f"export knows OpenVLA-OFT's layout only, and this run's policy is a {type(policy).__name__}: "
            "name a run with policy=openvla_oft_7b or policy=openvla_oft_tiny"
        )
    return export(policy, folder, base)
