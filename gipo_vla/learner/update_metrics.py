"""Metrics of an update that are made of sums over its micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

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
"""What one update adds up, in this order; errors are value target minus value."""


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
