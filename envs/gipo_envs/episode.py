"""What every environment does around its simulator: hold actions, count env steps, end episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gipo_envs.protocol import EnvironmentSpec

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
