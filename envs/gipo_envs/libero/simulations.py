"""The compiled tasks of this process: made when first asked for, and kept.

A task takes 1 to 2 seconds to make, an episode's turn on one that is there microseconds. A suite of ten stays
in memory whole; of more tasks (libero_90) those that were used longest ago make room.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from pathlib import Path

from gipo_envs.libero.catalogue import Task
from gipo_envs.libero.simulation import TaskSimulation

TASKS_KEPT = 10
"""Compiled tasks in memory; more only while so many are in use at once. About 0.15 GB each, and as much again
where cameras look."""

_kept: OrderedDict[tuple[Task, Path], TaskSimulation] = OrderedDict()
"""Least recently used first."""


def acquire(task: Task, assets: Path) -> TaskSimulation:
    """The simulation of a task, for an episode; give it to ``release`` when that is over."""
    simulation = prepare(task, assets)
    simulation.users += 1
    return simulation


def prepare(task: Task, assets: Path) -> TaskSimulation:
    """The simulation of a task that will be needed soon."""
    key = (task, assets)
    if key not in _kept:
        _make_room()
        _kept[key] = TaskSimulation(task, assets)
    _kept.move_to_end(key)
    return _kept[key]


def release(simulation: TaskSimulation) -> None:
    """An episode on it is over. It stays in memory for the next one."""
    simulation.users -= 1


def _make_room() -> None:
    idle = [key for key, simulation in _kept.items() if simulation.users == 0]
    for key in idle[: max(0, len(_kept) - TASKS_KEPT + 1)]:
        _kept.pop(key).close()
        gc.collect()  # robosuite's objects refer to each other in circles
