"""Write a trained policy as a published OpenVLA-OFT checkpoint.

    python -m gipo_vla.export checkpoint=RUN_DIR out=FOLDER
    python -m gipo_vla.export experiment=libero_spatial_oft7b policy.checkpoint=PATH out=FOLDER

``checkpoint`` is a run folder of train or sft (its newest usable checkpoint is taken) or one checkpoint's
folder. Without one, what a run of the settings would start from is written (an adapter merged, say; also one
with a continuous head). The folder written holds merged weights that the original evaluation scripts load,
the adapter in peft's format, the statistics, tokenizer and small heads, and in files of its own what the
published layout has no place for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from gipo_envs.errors import UserError
from gipo_vla import cli
from gipo_vla.assembly import environment_spec, named_run, policy_at
from gipo_vla.telemetry.console import console

if TYPE_CHECKING:
    from gipo_vla.policies.openvla_oft import ExportSummary

OWN_KEYS = ("checkpoint", "out")


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "train", __doc__ or "")
    if overrides is None:
        return 0
    own = {key: value for key, _, value in (text.partition("=") for text in overrides) if key in OWN_KEYS}
    rest = [text for text in overrides if text.partition("=")[0] not in OWN_KEYS]
    if not own.get("out"):
        raise UserError("out is missing: give checkpoint=RUN_DIR out=FOLDER")
    if own.get("checkpoint") and rest:
        raise UserError(f"{rest[0]}: with checkpoint=RUN_DIR the settings are that run's own")
    settings, checkpoint = named_run(own.get("checkpoint"), rest)
    policy = policy_at(settings, environment_spec(settings), torch.device("cpu"), checkpoint)
    summary = export_policy(policy, own["out"])
    console.print(f"written to {own['out']}", soft_wrap=True)
    print(json.dumps(asdict(summary), default=str))
    return 0


def export_policy(policy: nn.Module, folder: str | Path, base: str | Path | None = None) -> ExportSummary:
    """Write a policy.

    Args:
        folder: new or empty.
        base: the checkpoint that the policy started from, if it has moved since.

    Raises:
        UserError: the policy has no published layout, the folder is in use, or the base is gone.
    """
    from gipo_vla.policies.openvla_oft import OpenVlaOftPolicy, export

    if not isinstance(policy, OpenVlaOftPolicy):
        raise UserError(
            f"export knows OpenVLA-OFT's layout only, and this run's policy is a {type(policy).__name__}: "
            "name a run with policy=openvla_oft_7b or policy=openvla_oft_tiny"
        )
    return export(policy, folder, base)


if __name__ == "__main__":
    cli.run(main)
