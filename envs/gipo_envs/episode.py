"""What every environment does around its simulator: hold actions, count env steps, end episodes, observe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gipo_envs import image_formats
from gipo_envs.protocol import ChunkResult, EnvironmentSettings, EnvironmentSpec, Observation

PreparedAction = TypeVar("PreparedAction")


class EpisodicEnvironment(ABC, Generic[PreparedAction]):
    """What all environments of this project share; ``gipo_envs.protocol.Environment`` says what methods do.

    A family begins episodes, advances by one env step, and shows what there is to see.
    """

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec, sparse: bool) -> None:
        self._settings, self._spec, self._sparse = settings, spec, sparse
        self._image_format = image_formats.get(settings.camera.format)
        self._task = self._step_limit = self._env_steps = 0
        self._end_on_success = self._succeeded = False
        self._over = True

    @property
    def spec(self) -> EnvironmentSpec:
        return self._spec

    def reset(
        self,
        initial_state: int,
        seed: int,
        task: int = 0,
        step_limit: int | None = None,
        end_on_success: bool | None = None,
    ) -> Observation:
        spec = self._spec
        limit = spec.step_limit if step_limit is None else step_limit
        if initial_state < 0:
            raise ValueError(f"initial_state must not be negative, got {initial_state}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if not 0 <= task < len(spec.tasks):
            raise ValueError(f"task must index {len(spec.tasks)} tasks, got {task}")
        if not 1 <= limit <= spec.step_limit:
            raise ValueError(f"step_limit of an episode must be 1 to {spec.step_limit}, got {limit}")
        self._task, self._step_limit, self._env_steps = task, limit, 0
        self._end_on_success = spec.end_on_success if end_on_success is None else end_on_success
        self._succeeded = self._over = False
        self._begin(initial_state, seed)
        return self.observe()

    def step_chunk(self, actions: NDArray[np.float32]) -> ChunkResult:
        outcome = self._execute(actions)
        return ChunkResult(self.observe(), *outcome)

    def replay(self, actions: NDArray[np.float32]) -> None:
        if self._execute(actions)[1] < len(actions):
            raise ValueError("the episode ended before all of the actions to replay were executed")

    def _execute(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], int, NDArray[np.bool_], bool, bool, bool]:
        """What ``ChunkResult`` holds besides the observation, of actions up to the end of the episode.

        A step limit that falls within a held action cuts that action short; it still counts as executed.
        """
        actions = check_actions(actions, self._spec.action_size)
        if self._over:
            raise RuntimeError("the episode is over (or none was begun): call reset")
        rewards = np.zeros(len(actions), np.float32)
        success = np.zeros(len(actions), np.bool_)
        executed = 0
        success_now = terminated = truncated = False
        for action in self._prepare(actions):
            held_reward = 0.0
            for _ in range(self._spec.action_repeat):
                dense_reward, success_now = self._advance(action)
                self._env_steps += 1
                held_reward += float(success_now and not self._succeeded) if self._sparse else dense_reward
                if success_now:
                    success[executed] = self._succeeded = True
                terminated = success_now and self._end_on_success
                truncated = not terminated and self._env_steps >= self._step_limit
                if terminated or truncated:
                    break
            rewards[executed] = held_reward
            executed += 1
            self._over = terminated or truncated
            if self._over:
                break
        self._arrive()
        return rewards, executed, success, success_now, terminated, truncated

    def observe(self) -> Observation:
        named = self._spec.observation
        observation = {name: array for name, array in self._look().items() if name in named}
        observation["task"] = np.asarray(self._task, np.int64)
        if "images" in named:
            camera = self._settings.camera
            frames = (self._frame(name, camera.height, camera.width) for name in camera.names)
            observation["images"] = np.stack([self._image_format.apply(frame) for frame in frames])
        return observation

    @abstractmethod
    def _begin(self, initial_state: int, seed: int) -> None:
        """Put the present task into an initial state."""

    def _prepare(self, actions: NDArray[np.float32]) -> list[PreparedAction]:
        """What ``_advance`` takes, from finite actions (K, A); by default rows (A,), clipped to [-1, 1]."""
        prepared: list[Any] = list(actions.clip(-1.0, 1.0))
        return prepared

    @abstractmethod
    def _advance(self, action: PreparedAction) -> tuple[float, bool]:
        """Simulate one env step; its dense reward and whether the task is solved now."""

    def _arrive(self) -> None:
        """Called after a chunk, before anything is observed."""

    @abstractmethod
    def _look(self) -> Observation:
        """Arrays by name of the present state; those that the spec does not name are left out."""

    def _frame(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """A policy's picture (height, width, 3), before the image format; by default that of videos."""
        return self.render(height, width)

    @abstractmethod
    def render(self, height: int, width: int) -> NDArray[np.uint8]: ...

    def close(self) -> None:
        """Give back what the simulator holds; by default nothing."""


def check_actions(actions: NDArray[np.float32], action_size: int) -> NDArray[np.float32]:
    """Actions as finite float32 (K, A) with K >= 1 (MuJoCo answers NaN by silently resetting itself)."""
    actions = np.asarray(actions, dtype=np.float32)
    if actions.ndim != 2 or actions.shape[0] < 1 or actions.shape[1] != action_size:
        raise ValueError(f"actions must have shape (K >= 1, {action_size}), got {actions.shape}")
    if not np.isfinite(actions).all():
        raise ValueError("actions must be finite")
    return actions
