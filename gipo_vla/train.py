"""Train a policy: ``python -m gipo_vla.train [overrides]``, or the same under torchrun.

    python -m gipo_vla.train                                     the default experiment, on this machine
    torchrun --nproc-per-node=8 -m gipo_vla.train experiment=... one actor-learner a GPU
    python -m gipo_vla.train resume=RUN_DIR                      go on with a run

Ends with an evaluation on initial states that training never draws, a learning curve, a video of the
trained policy, and one line that says where everything is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gipo_envs import gl
from gipo_envs.errors import UserError
from gipo_vla import cli
from gipo_vla.checkpoint.resume import Start, resolve
from gipo_vla.checkpoint.run_folder import RunFolder, create
from gipo_vla.config import Config
from gipo_vla.distributed import group
from gipo_vla.pipeline import Pipeline, build_policy, environment_spec, plan
from gipo_vla.session import Session, newest_checkpoint
from gipo_vla.startup import print_plans
from gipo_vla.telemetry.console import console


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "train", __doc__ or "")
    if overrides is None:
        return 0
    train(resolve(overrides))
    return 0


def train(start: Start) -> Path:
    """A training session; returns the run folder.

    Raises:
        UserError: before any worker is started, whatever is wrong with the settings or the machine.
    """
    settings = start.settings
    spec = environment_spec(settings)
    if "images" in spec.observation:
        gl.choose()
    device = group.choose_device(settings.learner.device)
    torch.set_num_threads(settings.learner.threads)
    policy = build_policy(settings, spec, device)
    plans = plan(settings, policy, spec, group.world_size())
    group.start(device)
    try:
        folder = start.folder or _agree_on_folder(settings)
        checkpoint = newest_checkpoint(folder) if start.folder else None
        settings = replace(settings, run_dir=str(folder.path))
        if group.rank() == 0:
            print_plans(settings, policy, plans, device)
            if checkpoint:
                console.print(f"going on from {checkpoint}", soft_wrap=True)
            for change in start.changes:
                console.print(f"changed since the run began: {change}", soft_wrap=True)
        pipeline = Pipeline(settings, policy, plans, device)
        try:
            with Session(settings, folder, pipeline, checkpoint) as session:
                if session.run():
                    session.finish()
        finally:
            pipeline.close()
        return folder.path
    finally:
        group.stop()


def _agree_on_folder(settings: Config) -> RunFolder:
    """Rank 0 makes the folder; a refusal is raised on every rank."""
    problem, path = None, None
    if group.rank() == 0:
        try:
            path = create(settings).path
        except UserError as error:
            problem = str(error)
    problem, path = group.from_first((problem, path))
    if problem is not None:
        raise UserError(problem)
    return RunFolder(path)


if __name__ == "__main__":
    cli.run(main)
