"""From demonstrations to batches of what cloning learns from.

An example is one recorded observation and the K actions that the expert takes from there on; where the
episode ends within them, the rest is masked.

Which examples make which update is a pure function of (seed, step): training can stop and go on anywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_vla.imitation.demonstrations import Demonstrations
from gipo_vla.learner.demonstrated import Demonstrated
from gipo_vla.rollout.episodes import Role, generator


class Examples:
    """The examples of some demonstrations, by number."""

    def __init__(self, demonstrations: Demonstrations, chunk: int) -> None:
        self.demonstrations, self.chunk = demonstrations, chunk
        records = demonstrations.records
        counts = [record.rows for record in records]
        self.row = demonstrations.rows
        """Row of each example in the observations."""
        self.first = np.asarray(demonstrations.observed_at)[self.row]
        """Row of its first action."""
        self.end = np.repeat([record.first_action + record.actions for record in records], counts)
        """Row behind the last action of its episode."""
        self.episode = np.repeat(np.arange(len(records)), counts)
        self.task = np.repeat(np.asarray(demonstrations.task_index, np.int64), counts)

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, examples: NDArray[np.int64]) -> Demonstrated:
        """The examples with these numbers (a number may come twice)."""
        rows = self.row[examples]
        observations: dict[str, NDArray[Any]] = {
            name: array[rows] for name, array in self.demonstrations.observations.items()
        }
        observations["task"] = self.task[examples]
        at = self.first[examples][:, None] + np.arange(self.chunk)
        last = self.end[examples][:, None] - 1
        return Demonstrated(observations, self.demonstrations.actions[np.minimum(at, last)], at <= last)

    def split(self, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the training and of the held-out examples; whole episodes are held out, this share of
        each task's, rounded up but never all of them."""
        tasks = np.asarray(self.demonstrations.task_index)
        held: list[int] = []
        for task in np.unique(tasks):
            own = np.flatnonzero(tasks == task)
            count = min(math.ceil(share * len(own)), len(own) - 1)
            order = generator(seed, Role.CLONING, 0, int(task)).permutation(own)
            held += order[:count].tolist()
        is_held = np.isin(self.episode, held)
        return np.flatnonzero(~is_held), np.flatnonzero(is_held)


class BatchOrder:
    """Epochs of shuffled examples, cut into batches across their borders."""

    def __init__(self, examples: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed

    def at(self, step: int) -> NDArray[np.int64]:
        """The examples (batch_size,) of update number ``step``, from 0."""
        count = len(self.examples)
        first = step * self.batch_size
        epochs = range(first // count, (first + self.batch_size - 1) // count + 1)
        order = np.concatenate([self._epoch(epoch) for epoch in epochs])
        start = first - epochs[0] * count
        return order[start : start + self.batch_size]

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        return generator(self.seed, Role.CLONING, 1, epoch).permutation(self.examples)
