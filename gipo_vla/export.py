"""Write a trained policy as a published OpenVLA-OFT checkpoint.

    python -m gipo_vla.export checkpoint=RUN_DIR out=FOLDER
    python -m gipo_vla.export experiment=libero_spatial_oft7b policy.checkpoint=PATH out=FOLDER

Without ``checkpoint``, the policy that a run of the settings would start from is written (for instance with
an adapter merged; a continuous head is written too). The folder holds merged weights that the original
evaluation scripts load, the adapter in peft's format, the statistics, tokenizer and small heads, and in files
of its own what the published layout has no place for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from gipo_envs.errors import UserError
from gipo_vla import cli, options
from gipo_vla.assembly import environment_spec, named_run, policy_at
from gipo_vla.run.refusals import refuse_to_play
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console

if TYPE_CHECKING:
    from gipo_vla.policies.openvla_oft.writing import ExportSummary


@dataclass(frozen=True)
class Options:
    """What to write, and where."""

    checkpoint: str | None = None
    """A run folder of train or sft, of which the newest usable checkpoint is taken, or a checkpoint's
    folder."""
    out: Path | None = None
    """New or empty folder to write to. Required."""


def main(arguments: Sequence[str]) -> int:
    parsed = options.parse(arguments, Options, __doc__ or "", TrainingSettings)
    if parsed is None:
        return 0
    own, overrides = parsed
    if own.out is None:
        raise UserError("out is missing: give checkpoint=RUN_DIR out=FOLDER")
    if own.checkpoint and overrides:
        raise UserError(f"{overrides[0]}: with checkpoint=RUN_DIR the settings are that run's own")
    settings, checkpoint = named_run(own.checkpoint, overrides)
    spec, device = environment_spec(settings), torch.device("cpu")
    refuse_to_play(settings, spec, device)
    policy = policy_at(settings, spec, device, checkpoint)
    summary = export_policy(policy, own.out)
    console.print(f"written to {own.out}", soft_wrap=True)
    print(json.dumps(asdict(summary), default=str))
    return 0


def export_policy(policy: nn.Module, folder: str | Path) -> ExportSummary:
    """Write a policy into a new or empty folder. Raises UserError: it has no published layout, the folder is
    in use, or the checkpoint that it started from is gone."""
    from gipo_vla.policies.openvla_oft.policy import OpenVlaOftPolicy
    from gipo_vla.policies.openvla_oft.writing import export

    if not isinstance(policy, OpenVlaOftPolicy):
        raise UserError(
            f"export knows OpenVLA-OFT's layout only, and this run's policy is a {type(policy).__name__}: "
            "name a run with policy=openvla_oft_7b or policy=openvla_oft_tiny"
        )
    return export(policy, folder)


if __name__ == "__main__":
    cli.run(main)
