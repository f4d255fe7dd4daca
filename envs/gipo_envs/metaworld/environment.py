"""Meta-World behind the environment protocol."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gipo_envs.episode import EpisodicEnvironment
from gipo_envs.metaworld.cameras import VIDEO_CAMERA
from gipo_envs.metaworld.simulation import TaskSimulation, rehearsal
from gipo_envs.metaworld.stepping import PreparedAction
from gipo_envs.protocol import EnvironmentSettings, EnvironmentSpec, Observation

LANDMARK_SOURCES = np.array([*range(3), *range(4, 7), *range(11, 14), *range(36, 39), 3])
"""Where the landmarks stand in the state: hand, two objects, goal, opening of the gripper."""

WIDEST_OPENING = np.float32(0.1)
"""Metres between the claws that the state calls 1."""


class MetaWorldEnvironment(EpisodicEnvironment[PreparedAction]):
    """One robot that can be reset to any of its tasks; see ``gipo_envs.protocol.Environment``.

    Simulations are made when their task is first reset to, and kept; ``TaskSimulation`` says what one costs.
    The seed of a reset changes nothing: beyond the initial state Meta-World draws no number.
    """

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec) -> None:
        super().__init__(settings, spec, sparse=settings.reward == "sparse")
        self._simulations: dict[int, TaskSimulation] = {}

    @property
    def simulation(self) -> TaskSimulation:
        """The simulation of the present task."""
        if self._task not in self._simulations:
            self._simulations[self._task] = TaskSimulation(self._spec.tasks[self._task])
        return self._simulations[self._task]

    def rehearse(self, initial_state: int, task: int) -> None:
        """Make the reset to an episode to come cheaper, in idle time; changes nothing else."""
        rehearsal(self._spec.tasks[task]).reset(initial_state)

    def _begin(self, initial_state: int, seed: int) -> None:
        self.simulation.reset(initial_state)

    def _prepare(self, actions: NDArray[np.float32]) -> list[PreparedAction]:
        return self.simulation.prepare(actions)

    def _advance(self, action: PreparedAction) -> tuple[float, bool]:
        return self._simulations[self._task].advance(action)

    def _look(self) -> Observation:
        state = self.simulation.observation.astype(np.float32)
        landmarks = state[LANDMARK_SOURCES]
        landmarks[-1] *= WIDEST_OPENING
        return {"state": state, "proprio": state[:4].copy(), "landmarks": landmarks}

    def _frame(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        return self.simulation.picture(camera, height, width, self._settings.camera.quality)

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        return self.simulation.picture(VIDEO_CAMERA, height, width, "smooth")

    def close(self) -> None:
        for simulation in self._simulations.values():
            simulation.close()
        self._simulations.clear()
