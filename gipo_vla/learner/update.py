"""A drawn batch on its way through the learner, and the sums that describe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gipo_vla.learner.batch import MicroBatch
from gipo_vla.objectives.diagnostics import StalenessDiagnostics

# Indices of the sums that one update collects over micro-batches and ranks.
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
    known_moments: Tensor | None = None
    """The moments over all ranks, from an extra pass before the first micro-batch."""
    diagnostics: StalenessDiagnostics = field(default_factory=StalenessDiagnostics)


def std(count: int, total: float, squares: float) -> float:
    return max(squares / count - (total / count) ** 2, 0.0) ** 0.5


def explained_variance(count: int, sums: dict[str, float]) -> float:
    """1 - Var(target - value) / Var(target); 0 where targets do not vary."""
    variance = std(count, sums["target"], sums["target_square"]) ** 2
    error = std(count, sums["error"], sums["error_square"]) ** 2
    return 1.0 - error / variance if variance > 1e-12 else 0.0
