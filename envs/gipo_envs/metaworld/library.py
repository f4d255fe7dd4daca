"""What metaworld itself offers beside its simulators: scripted policies and its own way of stepping."""

from __future__ import annotations

import warnings

import metaworld
import numpy as np
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

from gipo_envs.family import BareSimulator, Expert
from gipo_envs.protocol import Observation


def expert(task: str) -> Expert:
    """The scripted policy for a task; its output goes far beyond the range of actions and is cut to it."""
    # The policies warn at every step that their gains are high; the cut is what deals with that.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    policy = ENV_POLICY_MAP[task]()

    def act(observation: Observation) -> NDArray[np.float32]:
        # A copy in double precision: the policies compute in the array that they are given.
        action = policy.get_action(observation["state"].astype(np.float64))
        return np.asarray(action, np.float32).clip(-1.0, 1.0)

    return act


def bare_simulator(task: str) -> BareSimulator:
    """The task's own class with its own ``step`` and ``reset``."""
    benchmark = metaworld.MT1(task)
    simulator: BareSimulator = benchmark.train_classes[task]()
    simulator.set_task(benchmark.train_tasks[0])  # type: ignore[attr-defined]
    return simulator
