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
from gipo_vla import cli, config
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.checkpoint.locate import find_checkpoint
from gipo_vla.checkpoint.policy_files import load_policy
from gipo_vla.imitation.settings import AnyRun, read_run
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
    settings: AnyRun
    if own.get("checkpoint"):
        if rest:
            raise UserError(f"{rest[0]}: with checkpoint=RUN_DIR the settings are that run's own")
        checkpoint = find_checkpoint(Path(own["checkpoint"]))
        settings = read_run(checkpoint / "config.yaml")
    else:
        checkpoint, settings = None, config.load("train", rest)
        if getattr(settings.policy, "checkpoint", None) is None and settings.init_from is None:
            raise UserError("checkpoint is missing: give checkpoint=RUN_DIR, or policy.checkpoint=PATH")
    summary = export_policy(policy_of(settings, checkpoint), own["out"])
    console.print(f"written to {own['out']}", soft_wrap=True)
    print(json.dumps(asdict(summary), default=str))
    return 0


def policy_of(settings: AnyRun, checkpoint: Path | None) -> nn.Module:
    """A run's policy at a checkpoint (None: as it starts), on the CPU."""
    policy = build_policy(settings, environment_spec(settings), torch.device("cpu"), stored=checkpoint)
    assert isinstance(policy, nn.Module)
    if checkpoint is not None:
        load_policy(policy, checkpoint)
    return policy


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
