"""Meta-World behind the environment protocol."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gipo_envs import gl, image_formats
from gipo_envs.episode import Episode, check_actions, check_reset_arguments
from gipo_envs.metaworld.cameras import VIDEO_CAMERA
from gipo_envs.metaworld.simulation import TaskSimulation
from gipo_envs.metaworld.stepping import PreparedAction
from gipo_envs.protocol import ChunkResult, EnvironmentSettings, EnvironmentSpec, Observation

LANDMARK_SOURCES = np.array([*range(3), *range(4, 7), *range(11, 14), *range(36, 39), 3])
"""Where the landmarks stand in the state: hand, two objects, goal, opening of the gripper."""

WIDEST_OPENING = np.float32(0.1)
"""Metres between the claws that the state calls 1."""


class MetaWorldEnvironment:
    """One robot that can be reset to any of its tasks; see ``gipo_envs.protocol.Environment``.

    Simulations are made when their task is first reset to, and kept; ``TaskSimulation`` says what one costs.
    """

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec) -> None:
        if "images" in spec.observation:
            gl.choose()  # refuse now, not at the first picture
        self._settings = settings
        self._spec = spec
        self._simulations: dict[int, TaskSimulation] = {}
        self._image_format = image_formats.get(settings.camera.format)
        self._task = 0
        self._episode: Episode[PreparedAction] = Episode(
            spec, sparse=settings.reward == "sparse", advance=self._advance
        )

    @property
    def spec(self) -> EnvironmentSpec:
        return self._spec

    @property
    def simulation(self) -> TaskSimulation:
        """The simulation of the present task."""
        if self._task not in self._simulations:
            self._simulations[self._task] = TaskSimulation(self._spec.tasks[self._task])
        return self._simulations[self._task]

    def reset(
        self,
        initial_state: int,
        seed: int,
        task: int = 0,
        step_limit: int | None = None,
        end_on_success: bool | None = None,
    ) -> Observation:
        """See the protocol. ``seed`` changes nothing: beyond the initial state Meta-World draws no number."""
        check_reset_arguments(self._spec, initial_state, seed, task)
        self._episode.start(step_limit, end_on_success)
        self._task = task
        self.simulation.reset(initial_state)
        return self.observe()

    def step_chunk(self, actions: NDArray[np.float32]) -> ChunkResult:
        outcome = self._episode.run(self._prepare(actions))
        return ChunkResult(
            observation=self.observe(),
            rewards=outcome.rewards,
            executed=outcome.executed,
            success=outcome.success,
            success_at_end=outcome.success_at_end,
            terminated=outcome.terminated,
            truncated=outcome.truncated,
        )

    def replay(self, actions: NDArray[np.float32]) -> None:
        prepared = self._prepare(actions)
        if self._episode.run(prepared).executed < len(prepared):
            raise ValueError("the episode ended before all of the actions to replay were executed")

    def observe(self) -> Observation:
        observation: Observation = {"task": np.asarray(self._task, np.int64)}
        if "state" in self._spec.observation:
            observation["state"] = self.simulation.observation.astype(np.float32)
        if "proprio" in self._spec.observation:
            observation["proprio"] = self.simulation.observation[:4].astype(np.float32)
        if "landmarks" in self._spec.observation:
            observation["landmarks"] = self.simulation.observation[LANDMARK_SOURCES].astype(np.float32)
            observation["landmarks"][-1] *= WIDEST_OPENING
        if "images" in self._spec.observation:
            observation["images"] = self._images()
        return observation

    def render(self, height: int, width: int) -> NDArray[np.uint8]:
        return self.simulation.picture(VIDEO_CAMERA, height, width, "default")

    def close(self) -> None:
        for simulation in self._simulations.values():
            simulation.close()
        self._simulations.clear()

    def _images(self) -> NDArray[np.uint8]:
        camera = self._settings.camera
        frames = (
            self.simulation.picture(name, camera.height, camera.width, camera.quality)
            for name in camera.names
        )
        return np.stack([self._image_format.apply(frame) for frame in frames])

    def _prepare(self, actions: NDArray[np.float32]) -> list[PreparedAction]:
        return self.simulation.prepare(check_actions(actions, self._spec.action_size))

    def _advance(self, action: PreparedAction) -> tuple[float, bool]:
        return self._simulations[self._task].advance(action)
