"""One demonstration in memory, wherever it comes from. Imports no torch.

Shape suffixes: T actions of the episode, A action size, N observations recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episode:
    """A successful episode: what was seen, and what an expert does there."""

    task: int
    """Into ``EnvironmentSpec.tasks``."""
    initial_state: int
    """Key of the task's sampler; -1 where a data set does not tell."""
    actions: NDArray[np.float32]
    """(T, A) in [-1, 1], of the expert; each is held for ``action_repeat`` env steps."""
    observed_at: NDArray[np.int64]
    """(N,) ascending: how many actions had been executed when each observation was made."""
    observations: dict[str, NDArray[Any]]
    """(N, ...) those of ``EnvironmentSpec.observation`` but ``task``."""
