"""Which task an episode is drawn from, and how each task is going.

Uniformly, or hard tasks more often: with s successes in the last n (at most ``WINDOW``) episodes of task k,

    p_k = (s + 1) / (n + 2)                                            its success under a uniform prior
    P(k) = floor / T + (1 - floor) (1 - p_k) / sum_j (1 - p_j)         over T tasks

The prior keeps a task that has not been seen, or never failed, from having no say; the floor draws every task
at least that often, also one that has long been solved and would otherwise be forgotten.

The statistics take in all ranks' episodes between iterations and are the same on every rank. What is drawn
with them comes from the episode's own random stream (see ``episodes``), so ranks change no draw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

WINDOW = 20
"""Latest episodes of a task that its success is judged by."""


class TaskSampler:
    """Draws tasks and counts their episodes.

    Args:
        names: the tasks, by index.
        mode: uniform, or success: see the module.
        floor: share of the draws that is spread evenly over all tasks.
    """

    def __init__(
        self, names: Sequence[str], mode: Literal["uniform", "success"] = "uniform", floor: float = 0.2
    ) -> None:
        self.names, self.mode, self.floor = tuple(names), mode, floor
        self.episodes = [0] * len(self.names)
        """Finished so far, by task."""
        self._recent: list[deque[bool]] = [deque(maxlen=WINDOW) for _ in self.names]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(T,) of drawing each task; they sum to 1."""
        count = len(self.names)
        if self.mode == "uniform":
            return np.full(count, 1 / count)
        failure = np.array([1 - (sum(own) + 1) / (len(own) + 2) for own in self._recent])
        return self.floor / count + (1 - self.floor) * failure / failure.sum()

    def draw(self, rng: np.random.Generator) -> int:
        """Index of a task; takes one number from the generator."""
        if self.mode == "uniform":
            return int(rng.integers(len(self.names)))
        ends = np.cumsum(self.probabilities)
        return min(int(np.searchsorted(ends, rng.random(), side="right")), len(ends) - 1)

    def observe(self, outcomes: Iterable[tuple[int, bool]]) -> None:
        """Take in finished episodes of all ranks, in environment order: task and whether it succeeded."""
        for task, success in outcomes:
            self.episodes[task] += 1
            self._recent[task].append(bool(success))

    def metrics(self) -> dict[str, float | int | None]:
        """A few numbers a task; none where there is only one task."""
        if len(self.names) == 1:
            return {}
        row: dict[str, float | int | None] = {}
        for index, name in enumerate(self.names):
            recent = self._recent[index]
            row[f"task/{name}/success_once_recent"] = sum(recent) / len(recent) if recent else None
            row[f"task/{name}/episodes"] = self.episodes[index]
            if self.mode == "success":
                row[f"task/{name}/probability"] = float(self.probabilities[index])
        return row

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"episodes": list(self.episodes), "recent": [list(own) for own in self._recent]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned, for the same tasks."""
        self.episodes = list(state["episodes"])
        self._recent = [deque(own, maxlen=WINDOW) for own in state["recent"]]
