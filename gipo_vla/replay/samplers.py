"""Which segments a batch is drawn from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Sampler = Callable[[int, int, np.random.Generator], NDArray[np.int64]]
"""(segments, count, rng) -> indices of ``count`` different segments, where 0 is the oldest."""


def uniform(segments: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Every segment alike."""
    return rng.choice(segments, count, replace=False)


def recency(half_life: float) -> Sampler:
    """Newer segments more often: the weight halves every ``half_life`` of the segments held."""

    def sample(segments: int, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        age = (segments - 1 - np.arange(segments)) / max(segments, 1)
        # Gumbel top-k draws without replacement in proportion to the weights, however small they get.
        keys = -age / half_life * np.log(2.0) + rng.gumbel(size=segments)
        return np.argpartition(-keys, count - 1)[:count]

    return sample
