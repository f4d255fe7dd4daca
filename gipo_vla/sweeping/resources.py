"""How many jobs at once, and which GPUs each of them sees."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from gipo_envs.errors import UserError
from gipo_vla.settings.schema import TrainingSettings
from gipo_vla.sweeping.settings import SweepSettings


def cores() -> int:
    """Cores that this process may use (less than the machine's under Slurm or taskset)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them: numbers, or names of GPUs
    and of MIG slices. CUDA reads that list up to the first -1."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        return names[: names.index("-1")] if "-1" in names else names
    return [str(index) for index in range(torch.cuda.device_count())]


def cores_per_job(settings: TrainingSettings, ranks: int) -> int:
    """Cores that a run keeps busy: its simulators, or the learner's threads; they mostly take turns."""
    return ranks * max(settings.rollout.workers, settings.learner.threads)


def at_once(sweep: SweepSettings, runs: Sequence[TrainingSettings], cores_here: int, gpus_here: int) -> int:
    """Jobs that run side by side: what was asked for, else as many as the machine feeds.

    Raises:
        UserError: one job needs more GPUs than there are.
    """
    on_gpu = gpus_here > 0 and any(run.learner.device != "cpu" for run in runs)
    if on_gpu and sweep.ranks > gpus_here:
        raise UserError(
            f"nproc_per_node is {sweep.ranks}, but there are {gpus_here} GPUs: lower it, or set "
            "learner.device=cpu"
        )
    if sweep.jobs is not None:
        return sweep.jobs
    by_cores = cores_here // max((cores_per_job(run, sweep.ranks) for run in runs), default=1)
    return max(1, min(by_cores, gpus_here // sweep.ranks) if on_gpu else by_cores)


def gpus_of(slot: int, ranks: int, available: Sequence[str]) -> list[str]:
    """GPUs of the job in a slot: its own while there are enough, then shared in turn."""
    places = max(1, len(available) // ranks)
    first = slot % places * ranks
    return list(available[first : first + ranks])
