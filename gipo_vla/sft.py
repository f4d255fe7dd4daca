"""Clone a policy from demonstrations: ``python -m gipo_vla.sft [overrides]``, or the same under torchrun.

    python -m gipo_vla.sft                                      the default experiment: a state policy
    python -m gipo_vla.sft experiment=metaworld_oft_tiny_sft    a small vision-language-action policy, pixels
    python -m gipo_vla.sft demonstrations=libero_hdf5 demonstrations.path=DIR env=libero_spatial ...
    python -m gipo_vla.sft resume=RUN_DIR                       go on with a run
    python -m gipo_vla.train init_from=RUN_DIR ...              reinforce what was cloned

Records demonstrations of the environment's scripted experts (or reads a data set's), clones until the updates
are made or the held-out loss has settled, evaluates on initial states that no demonstration began with, and
leaves a run folder like training's, checkpoints of the same format included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gipo_envs import EnvironmentSpec, gl, needs_opengl
from gipo_envs.errors import UserError
from gipo_vla import cli, config
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint.resume import differences
from gipo_vla.checkpoint.run_folder import RunFolder, create
from gipo_vla.distributed import group
from gipo_vla.distributed.signals import stop_with_launcher
from gipo_vla.imitation import settings as sft_settings
from gipo_vla.imitation import sources
from gipo_vla.imitation.demonstrations import Demonstrations
from gipo_vla.imitation.examples import Examples
from gipo_vla.imitation.session import CloningSession
from gipo_vla.imitation.settings import SftConfig
from gipo_vla.imitation.statistics import dataset_statistics
from gipo_vla.policies.base import Policy
from gipo_vla.run.memory import machine_limits
from gipo_vla.run.plan import RunPlan, plan_run
from gipo_vla.startup import open_together
from gipo_vla.telemetry.console import console, settings_table

MAY_CHANGE = (
    "sft.steps:",
    "sft.settled_",
    "eval.",
    "checkpoint.",
    "telemetry.",
    "rollout.",
    "learner.threads",
    "env.assets",
)
"""What a run may be continued with another value of."""


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "sft", __doc__ or "")
    if overrides is None:
        return 0
    stop_with_launcher()
    clone(resolve(overrides))
    return 0


def resolve(overrides: Sequence[str]) -> SftConfig:
    """Settings of a command line; with ``resume``, the run's own with what it may change.

    Raises:
        UserError: a setting is wrong, or the run to continue does not exist, is finished or would become
            another one.
    """
    asked = [text.partition("=")[2].strip("'\"") for text in overrides if text.startswith("resume=")]
    if not asked or asked[-1] in ("null", ""):
        return sft_settings.load(overrides)
    path = Path(asked[-1])
    folder = RunFolder(path)
    if not folder.config.is_file() or not folder.has_checkpoint():
        raise UserError(f"resume={path} holds no run with a checkpoint: give the folder of a run of sft")
    base = sft_settings.read_run(folder.config)
    if not isinstance(base, SftConfig):
        raise UserError(f"resume={path} is a run of python -m gipo_vla.train: continue it with that")
    settings = config.override(base, [text for text in overrides if not text.startswith("resume=")])
    changes = differences(base, settings)
    forbidden = [line for line in changes if not line.startswith(MAY_CHANGE)]
    if forbidden:
        raise UserError(f"resume={path}: {'; '.join(forbidden)} would make this another run: start a new one")
    if folder.finished.exists() and not any(line.startswith("sft.") for line in changes):
        raise UserError(f"resume={path} is finished: give a larger sft.steps to clone further")
    return replace(settings, run_dir=str(path), resume=str(path))


def clone(settings: SftConfig) -> Path:
    """A cloning session; returns the run folder.

    Raises:
        UserError: whatever is wrong with settings, files or the machine.
    """
    torch.set_num_threads(settings.learner.threads)
    device = group.choose_device(settings.learner.device)
    with group.joined(device):
        return _clone(settings, device)


def _clone(settings: SftConfig, device: torch.device) -> Path:
    spec = environment_spec(settings)
    if needs_opengl(settings.env):
        gl.choose()
    plan, limits = plan_run(settings, spec, group.world_size(), device), machine_limits(device)
    plan.refuse(limits)  # before weights are read or demonstrations recorded
    if getattr(settings.policy, "checkpoint", None) is None:
        # One from nothing is quickly built: tell what does not fit before anything is recorded.
        build_policy(settings, spec, device)
    resumed = RunFolder(Path(settings.resume)) if settings.resume else None
    folder, lock = open_together(lambda: resumed or create(settings))
    with lock:
        settings = replace(settings, run_dir=str(folder.path))
        demonstrations = sources.obtain(settings, spec, folder.path)
        checkpoint = folders.newest_valid(folder.checkpoints)[0] if settings.resume else None
        fresh = checkpoint is None and settings.init_from is None
        # Weights that exist were learned with statistics of their own, which came with them.
        statistics = dataset_statistics(demonstrations, settings.env.family) if fresh else None
        policy = build_policy(settings, spec, device, checkpoint, statistics)
        session = CloningSession(settings, folder, spec, policy, demonstrations, device, plan, checkpoint)
        if group.rank() == 0:
            _print_plan(settings, spec, plan, policy, demonstrations, session.examples, device)
            console.print(plan.memory_table(limits))
        if session.run():
            session.finish()
    return folder.path


def _print_plan(
    settings: SftConfig,
    spec: EnvironmentSpec,
    plan: RunPlan,
    policy: Policy,
    demonstrations: Demonstrations,
    examples: Examples,
    device: torch.device,
) -> None:
    """The table that a run begins with, on stderr."""
    assert isinstance(policy, torch.nn.Module)
    sft, source, learner = settings.sft, settings.demonstrations, settings.learner
    trainable = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    tried = f", kept of {demonstrations.attempts} attempts" if demonstrations.attempts else ""
    settled = (
        f", or until the held-out loss has not fallen for {sft.settled_after} iterations"
        if sft.settled_after
        else ""
    )
    rows = {
        "environment": f"{settings.env.family} {', '.join(spec.tasks[:3])}{' ...' * (len(spec.tasks) > 3)}",
        "demonstrations": f"{len(demonstrations.records)} ({source.name}){tried}; {len(examples):,} examples "
        f"of chunk {policy.chunk}; {sft.validation_share:.0%} of the episodes held out",
        "policy": f"{settings.policy.name}, {trainable:,} trainable parameters",
        "starts from": settings.init_from or getattr(settings.policy, "checkpoint", None) or "random weights",
        "learner": f"DeepSpeed on {device}, {group.world_size()} rank(s), {sft.steps} updates of "
        f"{sft.batch_size} examples{settled}, learning rate {learner.policy_learning_rate:g}",
        **dict(plan.rows()),
        "run folder": str(settings.run_dir),
    }
    settings_table(f"gipo_vla sft  {settings.experiment}  seed {settings.seed}", list(rows.items()))


if __name__ == "__main__":
    cli.run(main)
