"""How a run begins, on all ranks alike: refusals, then folder and lock, the table, the lifecycle."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from gipo_envs import EnvironmentSpec, gl, needs_opengl
from gipo_envs.errors import RunStoppedError, UserError
from gipo_vla.assembly import environment_spec
from gipo_vla.checkpoint import folder as folders
from gipo_vla.checkpoint.run_folder import RunFolder, create, refuse_taken
from gipo_vla.cli import deny_writing_to_others
from gipo_vla.distributed import group
from gipo_vla.distributed.determinism import deterministic
from gipo_vla.distributed.signals import stop_with_launcher
from gipo_vla.rollout.process import WorkerLostError
from gipo_vla.run.allocator import keep_freed_memory
from gipo_vla.run.lifecycle import Lifecycle, WriteReport
from gipo_vla.run.memory import machine_limits, with_micro_batch
from gipo_vla.run.plan import RunPlan, plan_run
from gipo_vla.run.resume import Start
from gipo_vla.run.trainer import Trainer
from gipo_vla.settings import runs
from gipo_vla.settings.composition import command_of
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.telemetry.console import console, say, settings_table

LEAVING_SECONDS = 120.0
"""What a process that was just killed or preempted is given to let go of its run folder."""

MakeTrainer = Callable[[Any, EnvironmentSpec, torch.device, Path | None, RunPlan], Trainer]
"""Makes a trainer; see ``Trainer``."""


def prepare_process() -> None:
    """Manners of a process that writes runs: nothing that it writes is for everybody to change, and it is
    asked to stop when the torchrun that started it is gone."""
    deny_writing_to_others()
    stop_with_launcher()


def run(start: Start[Any], make: MakeTrainer, write_report: WriteReport | None = None) -> Path:
    """Run from where ``start`` says to its end or until it is asked to stop; returns the run folder.

    Args:
        write_report: see ``Lifecycle``.

    Raises:
        UserError: before any worker is started, whatever is wrong with settings, files or the machine.
        RunStoppedError: the run had to end; where possible there is a checkpoint.
    """
    torch.set_num_threads(start.settings.learner.threads)
    device = group.choose_device(start.settings.learner.device)
    keep_freed_memory(device)
    timeout_s = start.settings.learner.collective_timeout_s
    exact = deterministic(start.settings.learner.deterministic, device)
    with _full_disk_in_one_line(), exact, group.joined(device, timeout_s):
        return _run(_agree(start), make, device, write_report)


def _run(
    start: Start[Any], make: MakeTrainer, device: torch.device, write_report: WriteReport | None
) -> Path:
    settings = start.settings
    if start.finished:
        assert start.folder is not None
        say(f"{start.folder.path} is finished: nothing to do")
        return start.folder.path
    spec = environment_spec(settings)
    if needs_opengl(settings.env):
        gl.choose()
    world, limits = group.world_size(), machine_limits(device)
    if isinstance(settings, TrainingSettings):
        settings = with_micro_batch(settings, spec, world, device, limits.device)
    plan = plan_run(settings, spec, world, device)
    plan.refuse(limits)  # before weights are read or workers started
    begun = start.folder is not None and start.folder.has_checkpoint()
    trainer = make(settings, spec, device, start.folder.checkpoints if start.folder and begun else None, plan)
    with ExitStack() as stack:
        folder = _open_together(start, stack)
        checkpoint = newest_checkpoint(folder) if start.folder else None
        stack.enter_context(_lost_workers_in_one_line(folder))
        rows = trainer.prepare(folder, checkpoint)
        if group.rank() == 0:
            weights = settings.init_from or getattr(settings.policy, "checkpoint", None) or "random weights"
            rows = {**rows, **plan.rows(), "starts from": weights, "run folder": str(folder.path)}
            command = f"gipo_vla {command_of(settings)}"
            settings_table(f"{command}  {settings.experiment}  seed {settings.seed}", rows.items())
            console.print(plan.memory_table(limits))
        if start.folder:
            say(f"resuming from {checkpoint or 'the start: there is no checkpoint yet'}")
        for change in start.changes:
            say(f"changed since the run began: {change}")
        try:
            with Lifecycle(trainer, folder, plan, checkpoint, write_report) as lifecycle:
                lifecycle.run()
        finally:
            trainer.close()
    return folder.path


def _agree(start: Start[Any]) -> Start[Any]:
    """One reading of the disk for all ranks: that of the first rank that found its run."""
    # On a network file system one machine may see a folder before another does; and after a restart only the
    # machine that held rank 0 knows the run folder as its own.
    starts = group.gather(start)
    if len({runs.digest(other.settings) for other in starts}) > 1:
        raise UserError("the ranks were started with different settings: give every machine the same command")
    return next((other for other in starts if other.folder is not None), starts[0])


def _open_together(start: Start[Any], stack: ExitStack) -> RunFolder:
    """The folder that rank 0 chooses, and keeps locked while the stack is open."""

    def choose() -> Path:
        folder = start.folder or create(start.settings)
        stack.enter_context(folder.lock(LEAVING_SECONDS if start.by_itself else 0.0))
        if start.folder is None:
            refuse_taken(folder)  # again: another process may have had the lock in between
        folder.remove_leftovers()
        return folder.path

    return RunFolder(group.on_first(choose))


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """The checkpoint that every rank resumes from, None if none was ever completed. Damaged ones are named
    and set aside. Raises UserError: there are checkpoints, and all of them are damaged."""

    def choose() -> Path | None:
        if not folder.has_checkpoint():
            return None
        chosen, damaged = folders.newest_valid(folder.checkpoints)
        for line in damaged:
            say(f"warning: passed over a damaged checkpoint: {line}")
        folders.set_aside_newer(folder.checkpoints, chosen.name)
        return chosen

    return group.on_first(choose)


@contextmanager
def _lost_workers_in_one_line(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except WorkerLostError as error:
        last = "its last checkpoint" if folder.has_checkpoint() else "the start"
        raise RunStoppedError(f"{error}; resume from {last} with resume={folder.path}") from error


@contextmanager
def _full_disk_in_one_line() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunStoppedError(
            f"no room on the disk for {error.filename or 'the run'}: free some, then resume the run with "
            "resume=RUN_DIR"
        ) from error
