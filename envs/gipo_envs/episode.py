"""What every environment does around its simulator: hold actions, count env steps, end episodes, observe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gipo_envs import image_formats
from gipo_envs.protocol import ChunkResult, EnvironmentSettings, EnvironmentSpec, Observation

PreparedAction = TypeVar("PreparedAction")


@dataclass(slots=True)
class ChunkOutcome:
    """``ChunkResult`` without the observation; K actions, rows from ``executed`` on are zero."""

    rewards: NDArray[np.float32]
    executed: int
    success: NDArray[np.bool_]
    success_at_end: bool
    terminated: bool
    truncated: bool


class Episode(Generic[PreparedAction]):
    """The clock of one environment, used again for every episode.

    ``advance`` simulates one env step under an action that the environment prepared once for all the env
    steps for which it is held, and returns that step's dense reward and momentary success.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        sparse: bool,
        advance: Callable[[PreparedAction], tuple[float, bool]],
    ) -> None:
        self._spec = spec
        self._sparse = sparse
        self._advance = advance
        self._step_limit = 0
        self._end_on_success = spec.end_on_success
        self._steps = 0
        self._succeeded = False
        self._over = True

    def start(self, step_limit: int | None, end_on_success: bool | None = None) -> None:
        """Begin an episode; None stands for the spec's own."""
        limit = self._spec.step_limit if step_limit is None else step_limit
        if not 1 <= limit <= self._spec.step_limit:
            raise ValueError(f"step_limit of an episode must be 1 to {self._spec.step_limit}, got {limit}")
        self._step_limit = limit
        self._end_on_success = self._spec.end_on_success if end_on_success is None else end_on_success
        self._steps = 0
        self._succeeded = False
        self._over = False

    def run(self, actions: Sequence[PreparedAction]) -> ChunkOutcome:
        """Execute actions until they are used up or the episode ends.

        A step limit that falls within a held action cuts that action short; it still counts as executed.
        """
        if self._over:
            raise RuntimeError("the episode is over (or none was begun): call reset")
        rewards = np.zeros(len(actions), np.float32)
        success = np.zeros(len(actions), np.bool_)
        executed = 0
        success_now = terminated = truncated = False
        for index, action in enumerate(actions):
            held_reward = 0.0
            held_success = False
            for _ in range(self._spec.action_repeat):
                dense_reward, success_now = self._advance(action)
                self._steps += 1
                first_success = success_now and not self._succeeded
                held_reward += float(first_success) if self._sparse else dense_reward
                if success_now:
                    held_success = self._succeeded = True
                    if self._end_on_success:
                        terminated = True
                        break
                if self._steps >= self._step_limit:
                    truncated = True
                    break
            rewards[index] = held_reward
            success[index] = held_success
            executed = index + 1
            if terminated or truncated:
                self._over = True
                break
        return ChunkOutcome(rewards, executed, success, success_now, terminated, truncated)


class EpisodicEnvironment(ABC, Generic[PreparedAction]):
    """What all environments of this project share; ``gipo_envs.protocol.Environment`` says what methods do.

    A family begins episodes, advances by one env step, and shows what there is to see.
    """

    def __init__(self, settings: EnvironmentSettings, spec: EnvironmentSpec, sparse: bool) -> None:
        self._settings, self._spec = settings, spec
        self._clock: Episode[PreparedAction] = Episode(spec, sparse, self._advance)
        self._image_format = image_formats.get(settings.camera.format)
        self._task = 0

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
        check_reset_arguments(self._spec, initial_state, seed, task)
        self._clock.start(step_limit, end_on_success)
        self._task = task
        self._begin(initial_state, seed)
        return self.observe()

    def step_chunk(self, actions: NDArray[np.float32]) -> ChunkResult:
        outcome = self._clock.run(self._prepare(check_actions(actions, self._spec.action_size)))
        self._arrive()
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
        prepared = self._prepare(check_actions(actions, self._spec.action_size))
        if self._clock.run(prepared).executed < len(prepared):
            raise ValueError("the episode ended before all of the actions to replay were executed")
        self._arrive()

    def observe(self) -> Observation:
        observation = {"task": np.asarray(self._task, np.int64)} | self._look()
        if "images" in self._spec.observation:
            camera = self._settings.camera
            frames = (self._frame(name, camera.height, camera.width) for name in camera.names)
            observation["images"] = np.stack([self._image_format.apply(frame) for frame in frames])
        return observation

    @abstractmethod
    def _begin(self, initial_state: int, seed: int) -> None:
        """Put the present task into an initial state."""

    def _prepare(self, actions: NDArray[np.float32]) -> list[PreparedAction]:
        """What ``_advance`` takes, from finite actions (K, A): once, however long each is held. By default
        the rows (A,), clipped to [-1, 1]."""
        prepared: list[Any] = list(actions.clip(-1.0, 1.0))
        return prepared

    @abstractmethod
    def _advance(self, action: PreparedAction) -> tuple[float, bool]:
        """Simulate one env step; its dense reward and whether the task is solved now."""

    def _arrive(self) -> None:
        """Called after a chunk, before anything is observed."""

    @abstractmethod
    def _look(self) -> Observation:
        """What the spec names of the present state, task and images apart."""

    def _frame(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """A policy's picture (height, width, 3), before the image format; by default that of videos."""
        return self.render(height, width)

    @abstractmethod
    def render(self, height: int, width: int) -> NDArray[np.uint8]: ...

    def close(self) -> None:
        """Give back what the simulator holds; by default nothing."""


def check_reset_arguments(spec: EnvironmentSpec, initial_state: int, seed: int, task: int) -> None:
    """Refuse keys, seeds and task indices that no caller of this project means to pass."""
    if initial_state < 0:
        raise ValueError(f"initial_state must not be negative, got {initial_state}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not 0 <= task < len(spec.tasks):
        raise ValueError(f"task must index {len(spec.tasks)} tasks, got {task}")


def check_actions(actions: NDArray[np.float32], action_size: int) -> NDArray[np.float32]:
    """Actions as finite float32 (K, A) with K >= 1 (MuJoCo answers NaN by silently resetting itself)."""
    actions = np.asarray(actions, dtype=np.float32)
    if actions.ndim != 2 or actions.shape[0] < 1 or actions.shape[1] != action_size:
        raise ValueError(f"actions must have shape (K >= 1, {action_size}), got {actions.shape}")
    if not np.isfinite(actions).all():
        raise ValueError("actions must be finite")
    return actions
