"""A drawn batch on its way through the learner, and the sums that describe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gipo_vla.distributed import group
from gipo_vla.learner.batch import MicroBatch
from gipo_vla.learner.demonstrated import DemonstratedShare
from gipo_vla.objectives.diagnostics import StalenessDiagnostics

SUMS = (
    "policy_loss",
    "value_loss",
    "entropy",
    "kl_behaviour",
    "kl_reference",
    "lag_iterations",
    "advantage",
    "advantage_square",
    "target",
    "target_square",
    "error",
    "error_square",
    "value",
)
"""What one update adds up over micro-batches and ranks, in this order; an error is target minus value."""


@dataclass
class Update:
    """A drawn batch on its way through the learner."""

    micro_batches: list[MicroBatch]
    bootstrap_values: Sequence[Tensor]
    """float32 (N,) for each micro-batch: of what follows its segments, 0 where the task ended."""
    counts: Tensor
    """int64 (2,): valid transitions and valid tokens, over all ranks."""
    sums: Tensor
    moments: Tensor
    """Count, sum and sum of squares of the advantages before normalisation."""
    lag_max: Tensor
    """float32 (), in iterations."""
    bounds: Sequence[int] = ()
    """Where each micro-batch begins among the segments, and where the last one ends."""
    following: Tensor | None = None
    """int64 (N,) over all micro-batches: the segment that goes on where one ends, no later in this order; -1:
    none. None: values are taken from no other segment."""
    first_values: Tensor | None = None
    """float32 (N,): of each segment's first observation, once its micro-batch had its forward."""
    known_moments: Tensor | None = None
    """The moments over all ranks, from an extra pass before the first micro-batch."""
    statistics: Tensor | None = None
    """The objective's ``batch_statistics``, from such a pass."""
    diagnostics: StalenessDiagnostics = field(default_factory=StalenessDiagnostics)
    demonstrated: DemonstratedShare | None = None
    """To clone beside it."""

    def after(self, index: int, first_values: Tensor) -> Tensor:
        """float32 (N,) of a micro-batch: the values of what follows its segments.

        Args:
            first_values: (N,), of their own first observations, which others may need.
        """
        known = self.bootstrap_values[index]
        if self.following is None or self.first_values is None:
            return known
        own = slice(self.bounds[index], self.bounds[index + 1])
        self.first_values[own] = first_values
        following = self.following[own]
        return torch.where(following >= 0, self.first_values[following.clamp_min(0)], known)

    def of_all_ranks(self, packed: Tensor) -> Tensor:
        """(T, columns) of the tokens of all ranks, from those of this one; padded with zeros."""
        if group.world_size() > 1:
            # Ranks drop unequal numbers of padded transitions; a collective call wants equal shapes.
            _, chunk, dims = self.micro_batches[0].tokens.shape
            slots = sum(batch.mask.numel() for batch in self.micro_batches) * chunk * dims
            packed = nn.functional.pad(packed, (0, 0, 0, slots - len(packed)))
        return group.gather_tensors(packed)


def metrics_of_sums(values: Sequence[float], transitions: int, tokens: int) -> dict[str, float]:
    """Means, deviations and the explained variance, by the names of metrics.jsonl.

    Args:
        values: of ``SUMS``.
        transitions, tokens: valid ones, over micro-batches and ranks.
    """
    sums, n = dict(zip(SUMS, values, strict=True)), transitions
    return {
        "loss/policy": sums["policy_loss"] / tokens,
        "loss/value": sums["value_loss"] / n,
        "policy/entropy": sums["entropy"] / tokens,
        "policy/kl_behaviour": sums["kl_behaviour"] / tokens,
        "policy/kl_reference": sums["kl_reference"] / tokens,
        "advantage/mean": sums["advantage"] / n,
        "advantage/std": _std(n, sums["advantage"], sums["advantage_square"]),
        "value/mean": sums["value"] / n,
        "value/target_mean": sums["target"] / n,
        "value/explained_variance": _explained(n, sums),
        "staleness/lag_iterations_mean": sums["lag_iterations"] / n,
    }


def _std(count: int, total: float, squares: float) -> float:
    return max(squares / count - (total / count) ** 2, 0.0) ** 0.5


def _explained(count: int, sums: dict[str, float]) -> float:
    """1 - Var(target - value) / Var(target); 0 where targets do not vary."""
    variance = _std(count, sums["target"], sums["target_square"]) ** 2
    error = _std(count, sums["error"], sums["error_square"]) ** 2
    return 1.0 - error / variance if variance > 1e-12 else 0.0
