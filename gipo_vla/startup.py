"""What a run begins with: its folder, and the table of what is active and how old its data will be."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from gipo_envs import gl, needs_opengl
from gipo_envs.errors import UserError
from gipo_vla.checkpoint.run_folder import RunFolder
from gipo_vla.config import Config
from gipo_vla.distributed import group
from gipo_vla.policies.base import Policy
from gipo_vla.run.plan import RunPlan
from gipo_vla.telemetry.console import settings_table


def open_together(choose: Callable[[], RunFolder], patience: float = 0.0) -> tuple[RunFolder, IO[str]]:
    """The folder that rank 0 chooses, and its lock (other ranks get a file that locks nothing).

    Args:
        choose: called on rank 0.
        patience: of ``RunFolder.lock``.

    Raises:
        UserError: on every rank, what rank 0 was refused for.
    """
    problem, path, lock = None, None, None
    if group.rank() == 0:
        try:
            folder = choose()
            lock = folder.lock(patience)
            path = folder.path
        except UserError as error:
            problem = str(error)
    problem, path = group.from_first((problem, path))
    if problem is not None:
        raise UserError(problem)
    return RunFolder(path), lock or Path(os.devnull).open()


def print_plans(settings: Config, policy: Policy, plan: RunPlan, device: torch.device) -> None:
    """Print the table on stderr."""
    assert isinstance(policy, torch.nn.Module)
    assert plan.collection is not None
    spec = plan.collection.spec
    ranks, rollout, learner = group.world_size(), settings.rollout, settings.learner
    trainable = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    tasks = spec.tasks[0] if len(spec.tasks) == 1 else f"{len(spec.tasks)} tasks"
    rows = {
        "environment": f"{settings.env.family} {tasks}, {settings.env.reward} reward, "
        f"{spec.step_limit} env steps, actions held {spec.action_repeat}",
        "instruction": spec.instructions[0] + (" ..." if len(spec.tasks) > 1 else ""),
        "policy": f"{settings.policy.name}, {trainable:,} trainable parameters, chunk {policy.chunk} x "
        f"{policy.action_dims} tokens of {policy.bins}",
        "starts from": settings.init_from or getattr(settings.policy, "checkpoint", None) or "random weights",
        "objective": _values(settings.objective),
        "regularizers": _values(settings.regularizers) or "none",
        "credit": _values(settings.credit),
        "rollout": f"{ranks} rank(s) x {rollout.workers} workers x {rollout.envs_per_worker} environments, "
        f"{plan.collection.steps} vector steps an iteration, collect {rollout.collect}",
        "learner": f"DeepSpeed on {device}, {learner.updates} updates an iteration of "
        f"{learner.batch_segments} segments x {settings.replay.segment_length}, learning rates "
        f"{learner.policy_learning_rate:g} / {learner.value_learning_rate:g}",
        **dict(plan.rows()),
        **({"rendering": "{}: {}".format(*gl.choose())} if needs_opengl(settings.env) else {}),
        "run folder": str(settings.run_dir),
    }
    settings_table(f"gipo_vla  {settings.experiment}  seed {settings.seed}", list(rows.items()))


def _values(section: Any) -> str:
    """Settings as words; those that are off are left out."""
    values = dataclasses.asdict(section)
    name = values.pop("name", "")
    shown = [f"{key} {value}" for key, value in values.items() if value not in (None, 0.0)]
    if not name:  # regularizers: estimators say nothing without their coefficients
        shown = [text for text in shown if "coefficient" in text]
    return " ".join([name, ", ".join(shown)]).strip()
