"""Running mean and variance of observations, merged exactly from batches (Chan et al. 1979)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

VECTORS = ("state", "proprio", "landmarks")
"""Observations that are vectors of numbers, in the order in which they are put behind each other."""
EPSILON = 1e-3
"""Added to the standard deviation."""
CLIP = 10.0


class RunningNormalizer(nn.Module):
    """Maps x to (x - mean) / std, clipped to [-CLIP, CLIP]; the identity before the first update.

    The statistics are buffers in float64: they are saved with the policy and shared by its twin.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, size: int, inputs: tuple[str, ...] = ("state",)) -> None:
        super().__init__()
        self.inputs = inputs
        """Names of the observations whose numbers, one behind the other, are normalised."""
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(size, dtype=torch.float64))
        """Sum of squared deviations from the mean."""

    @torch.no_grad()
    def update(self, count: Tensor, total: Tensor, total_squares: Tensor) -> None:
        """Add a batch given by its moments: count (), sum (S,), sum of squares (S,), in float64.

        Moments instead of rows, so that ranks can add theirs before.
        """
        if count == 0:
            return
        batch_mean = total / count
        batch_squares = total_squares - total * batch_mean
        merged = self.count + count
        delta = batch_mean - self.mean
        self.mean += delta * (count / merged)
        self.squares += batch_squares + delta**2 * (self.count * count / merged)
        self.count.copy_(merged)

    def rows(self, observations: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """What ``update`` is to learn from: (N, S) the numbers of observations (N, ...)."""
        return np.concatenate([observations[name] for name in self.inputs], axis=-1)

    def forward(self, values: Tensor) -> Tensor:
        std = (self.squares / self.count).clamp_min(0).sqrt() + EPSILON
        normalized = ((values - self.mean.float()) / std.float()).clamp(-CLIP, CLIP)
        # Not an ``if``: the host would wait for the count.
        return torch.where(self.count == 0, values.float(), normalized)


def moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count (), sum (S,) and sum of squares (S,) of rows (N, S), in float64."""
    values = values.double()
    return torch.tensor(float(len(values)), dtype=torch.float64), values.sum(0), (values**2).sum(0)
