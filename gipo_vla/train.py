"""Train a policy: ``python -m gipo_vla.train [overrides]``, or the same under torchrun.

    python -m gipo_vla.train                                     the default experiment, on this machine
    torchrun --nproc-per-node=8 -m gipo_vla.train experiment=... one actor-learner a GPU
    python -m gipo_vla.train resume=RUN_DIR                      go on with a run
    python -m gipo_vla.train run_dir=DIR resume=auto             begin it, or go on with it if it is there

Ends with an evaluation on initial states that training never draws, a learning curve, a video of the
trained policy, and one line that says where everything is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gipo_envs import gl, needs_opengl
from gipo_envs.errors import UserError
from gipo_vla import cli, config
from gipo_vla.assembly import build_policy, environment_spec
from gipo_vla.checkpoint.resume import Start, resolve
from gipo_vla.checkpoint.run_folder import create
from gipo_vla.distributed import group
from gipo_vla.distributed.signals import stop_with_launcher
from gipo_vla.pipeline import Pipeline
from gipo_vla.run.memory import machine_limits
from gipo_vla.run.plan import plan_run
from gipo_vla.session import Session, newest_checkpoint
from gipo_vla.startup import open_together, print_plans
from gipo_vla.telemetry.console import console

LEAVING_SECONDS = 120.0
"""What a process that was just killed or preempted is given to let go of its run folder."""


def main(arguments: Sequence[str]) -> int:
    overrides = cli.handle_common_flags(arguments, "train", __doc__ or "")
    if overrides is None:
        return 0
    os.umask(os.umask(0o022) | 0o002)  # nothing that a run writes is for everybody to change
    stop_with_launcher()
    try:
        train(resolve(overrides))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise cli.RunStoppedError(
            f"no room on the disk for {error.filename or 'the run'}: free some, then go on with "
            "resume=RUN_DIR"
        ) from error
    return 0


def train(start: Start) -> Path:
    """A training session; returns the run folder.

    Raises:
        UserError: before any worker is started, whatever is wrong with the settings or the machine.
        RunStoppedError: the run had to end, with a checkpoint.
    """
    torch.set_num_threads(start.settings.learner.threads)
    device = group.choose_device(start.settings.learner.device)
    with group.joined(device):
        return _train(_agree_on_start(start), device)


def _train(start: Start, device: torch.device) -> Path:
    settings = start.settings
    if start.finished:
        assert start.folder is not None
        _say(f"{start.folder.path} is finished: nothing to do")
        return start.folder.path
    spec = environment_spec(settings)
    if needs_opengl(settings.env):
        gl.choose()
    plan, limits = plan_run(settings, spec, group.world_size(), device), machine_limits(device)
    plan.refuse(limits)  # before weights are read or workers started
    begun = start.folder if start.folder and start.folder.has_checkpoint() else None
    policy = build_policy(settings, spec, device, begun.checkpoints if begun else None, reinforced=True)
    patience = LEAVING_SECONDS if start.by_itself else 0.0
    folder, lock = open_together(lambda: start.folder or create(settings), patience)
    with lock:
        checkpoint = newest_checkpoint(folder) if start.folder else None
        settings = replace(settings, run_dir=str(folder.path))
        if group.rank() == 0:
            print_plans(settings, policy, plan, device)
            console.print(plan.memory_table(limits))
        if start.folder:
            _say(f"going on from {checkpoint or 'the start: there is no checkpoint yet'}")
        for change in start.changes:
            _say(f"changed since the run began: {change}")
        assert plan.collection is not None
        pipeline = Pipeline(settings, policy, plan.collection, device)
        try:
            with Session(settings, folder, pipeline, plan, checkpoint) as session:
                if session.run():
                    session.finish()
        finally:
            pipeline.close()
    return folder.path


def _agree_on_start(start: Start) -> Start:
    """One reading of the disk for all ranks: that of the first rank that found its run.

    (On a network file system one machine may see a folder before another does; and after a restart only the
    machine that held rank 0 knows the run folder as its own.)

    Raises:
        UserError: the ranks were started with different settings.
    """
    starts = group.gather(start)
    if len({config.digest(other.settings) for other in starts}) > 1:
        raise UserError("the ranks were started with different settings: give every machine the same command")
    return next((other for other in starts if other.folder is not None), starts[0])


def _say(line: str) -> None:
    if group.rank() == 0:
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
