"""One run in numbers: its scores, and how stale the data were that it learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from gipo_vla.reporting.runs import Row, Run

STALE_LAG_ITERATIONS = 20.0
STALE_P95_ABS_LOG_RATIO = 0.5
"""A regime is called stale when both are reached: the data are old, and the policy has moved since."""

Source = Literal["evaluation", "training"]
Score = Literal["success_once", "success_at_end", "over_training"]

SETTLED = (
    "staleness/lag_iterations_mean",
    "staleness/lag_iterations_max",
    "staleness/lag_mean",
    "staleness/lag_p95",
    "staleness/lag_max",
    "staleness/p95_abs_log_ratio",
    "staleness/p95_abs_log_ratio_new",
    "staleness/p95_abs_log_ratio_old",
    "staleness/effective_sample_size",
    "staleness/effective_sample_size_new",
    "staleness/effective_sample_size_old",
    "staleness/zero_fraction",
    "staleness/zero_fraction_new",
    "staleness/zero_fraction_old",
    "staleness/damped_fraction",
    "staleness/damped_fraction_new",
    "staleness/damped_fraction_old",
    "staleness/weight_mean",
    "staleness/approximate_kl",
    "staleness/gradient_share_old",
    "policy/entropy",
    "value/explained_variance",
)
"""Metrics that are reported as their mean over the settled half of a run."""


def settled_rows(run: Run) -> list[Row]:
    """The second half of the iterations done: the replay has filled and its age has settled."""
    return [row for row in run.rows if 2 * row["iteration"] > run.iterations]


def settled_mean(run: Run, metric: str) -> float | None:
    """Mean over the settled half; of a ``_max``, the greatest."""
    values = [row[metric] for row in settled_rows(run) if row.get(metric) is not None]
    if not values:
        return None
    return float(max(values) if metric.endswith("_max") else np.mean(values))


def regime(lag_iterations: float | None, p95_abs_log_ratio: float | None) -> str:
    """``stale``, ``not stale``, or ``unknown`` without the metrics."""
    if lag_iterations is None or p95_abs_log_ratio is None:
        return "unknown"
    stale = lag_iterations >= STALE_LAG_ITERATIONS and p95_abs_log_ratio >= STALE_P95_ABS_LOG_RATIO
    return "stale" if stale else "not stale"


def regime_of(runs: Sequence[Run]) -> str:
    """Regime of a configuration, from means over its runs."""
    return regime(
        mean_over(runs, "staleness/lag_iterations_mean"), mean_over(runs, "staleness/p95_abs_log_ratio")
    )


def mean_over(runs: Sequence[Run], metric: str) -> float | None:
    """Mean over runs of the settled mean (of a ``_max``, the greatest)."""
    values = [value for run in runs if (value := settled_mean(run, metric)) is not None]
    if not values:
        return None
    return float(max(values) if metric.endswith("_max") else np.mean(values))


def numerical_floor(runs: Sequence[Run]) -> float | None:
    """99th percentile of |log rho| between two forwards with the same weights: the greatest of the runs."""
    values = [run.rows[-1].get("staleness/numerical_floor_p99") for run in runs]
    return max((float(value) for value in values if value is not None), default=None)


def task_scores(run: Run, source: Source, score: Score = "success_once") -> dict[str, float]:
    """Success rate on each task.

    From held-out episodes at the end of training, or (``training``) from the last 100 training episodes
    of the run's last iterations; those know no ``success_at_end``. ``over_training`` is always of training
    episodes, and one number for all tasks of a run.
    """
    if score == "over_training":
        success = success_over_training(run)
        return {} if success is None else {", ".join(run.tasks): success}
    if source == "evaluation":
        assert run.evaluation is not None
        tasks = run.evaluation.get("tasks") or {run.tasks[0]: run.evaluation}
        return {name: float(values[score]) for name, values in tasks.items()}
    if score != "success_once":
        return {}
    last = {name: _last(run.rows, f"task/{name}/success_once_recent") for name in run.tasks}
    if len(run.tasks) == 1:
        last = {run.tasks[0]: _last(run.rows, "success_once_recent")}
    # No finished episode is no success yet.
    return {name: value or 0.0 for name, value in last.items()}


def success_over_training(run: Run) -> float | None:
    """Mean over training of the success of the last 100 episodes: high for a run that learned early."""
    points = [
        (row["env_steps"], row["success_once_recent"])
        for row in run.rows
        if row.get("success_once_recent") is not None
    ]
    if len(points) < 2:
        return points[0][1] if points else None
    steps, success = np.array(points, float).T
    return float(np.trapezoid(success, steps) / (steps[-1] - steps[0]))


def _last(rows: Sequence[Row], metric: str) -> float | None:
    return next((float(row[metric]) for row in reversed(rows) if row.get(metric) is not None), None)
