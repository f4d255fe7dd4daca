"""What metrics keep of each training episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_vla.replay.segment import Arrays
from gipo_vla.rollout.episodes import EpisodePlan


@dataclass(frozen=True)
class EpisodeRecord:
    """A finished episode, for metrics; rewards are unscaled."""

    env: int
    episode: int
    task: int
    episode_return: float
    env_steps: int
    success_once: bool
    success_at_end: bool


class EpisodeRecords:
    """Sums over the episode under way in each environment, and the records of those that ended."""

    def __init__(self, envs: int) -> None:
        self._return = np.zeros(envs)
        self._steps = np.zeros(envs, np.int64)
        self._success = np.zeros(envs, np.bool_)
        self._ended: list[EpisodeRecord] = []

    def add(
        self,
        slots: NDArray[np.int64],
        rewards: NDArray[np.float32],
        success: NDArray[np.bool_],
        env_steps: NDArray[np.integer[Any]],
    ) -> None:
        """Add the chunks of n environments.

        Args:
            slots: the environments.
            rewards: (n, K).
            success: (n, K).
            env_steps: (n,), executed.
        """
        self._steps[slots] += env_steps
        self._return[slots] += rewards.sum(-1)
        self._success[slots] |= success.any(-1)

    def begin(self, slot: int) -> None:
        """Begin a new episode in an environment."""
        self._return[slot], self._steps[slot], self._success[slot] = 0.0, 0, False

    def end(self, slot: int, plan: EpisodePlan, success_at_end: bool) -> None:
        """Record the episode of an environment."""
        self._ended.append(
            EpisodeRecord(
                env=plan.env,
                episode=plan.episode,
                task=plan.task,
                episode_return=float(self._return[slot]),
                env_steps=int(self._steps[slot]),
                success_once=bool(self._success[slot]),
                success_at_end=success_at_end,
            )
        )

    def take(self) -> list[EpisodeRecord]:
        """Episodes ended since the last call, in environment order."""
        ended, self._ended = self._ended, []
        return sorted(ended, key=lambda record: (record.env, record.episode))

    def state(self) -> tuple[Arrays, list[dict[str, Any]]]:
        """Everything a checkpoint must keep: the sums, and the records that were not taken."""
        sums = {"return": self._return, "steps": self._steps, "success": self._success}
        return sums, [asdict(record) for record in self._ended]

    def load_state(self, sums: Mapping[str, NDArray[Any]], ended: list[dict[str, Any]]) -> None:
        """Take back what ``state`` returned; ``sums`` may hold further arrays."""
        for name, own in self.state()[0].items():
            own[:] = sums[name]
        self._ended = [EpisodeRecord(**record) for record in ended]
