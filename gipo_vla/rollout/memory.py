"""Host memory of simulator workers, before any is started.

What is large in a worker belongs to its process and is shared by its environments: the simulator's libraries,
and a compiled model (with its meshes and textures, where cameras look) for every task that it has played.
Measured as unique set size on Linux with software rendering, rounded up:

    family        libraries    a task, states alone    a task with cameras
    point_reach   0.02 GB      -                       -
    metaworld     0.13 GB      0.03 GB                 0.08 GB
    libero_*      0.70 GB      0.15 GB                 0.26 GB, at most ten tasks at a time
"""

from __future__ import annotations

from dataclasses import dataclass

from gipo_envs import EnvironmentSpec


@dataclass(frozen=True)
class WorkerCost:
    """Bytes of one worker process."""

    libraries: int
    task: int
    task_with_cameras: int
    tasks_kept: int | None = None
    """Compiled tasks kept at most; None: all."""


COSTS = {
    "point_reach": WorkerCost(20_000_000, 0, 0),
    "recorded": WorkerCost(40_000_000, 0, 0),  # the recording itself is shared
    "metaworld": WorkerCost(130_000_000, 30_000_000, 80_000_000),
    "libero": WorkerCost(700_000_000, 150_000_000, 260_000_000, tasks_kept=10),
}
"""Costs by the first part of the family's name."""


def worker_bytes(family: str, spec: EnvironmentSpec) -> int:
    """Bytes of one worker once it has played every task."""
    cost = COSTS["libero" if family.startswith("libero") else family]
    tasks = len(spec.tasks) if cost.tasks_kept is None else min(len(spec.tasks), cost.tasks_kept)
    return cost.libraries + tasks * (cost.task_with_cameras if "images" in spec.observation else cost.task)
