"""One run in numbers: its scores, and how stale the data were that it learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from gipo_vla.reporting.runs import Run

STALE_LAG_ITERATIONS = 20.0
STALE_P95_ABS_LOG_RATIO = 0.5
"""A regime is called stale when both are reached: the data are old, and the policy has moved since."""

Source = Literal["evaluation", "training"]
Score = Literal[
    "success_once",
    "success_at_end",
    "mean_return",
    "sampled.success_once",
    "sampled.success_at_end",
    "sampled.mean_return",
    "over_training",
]
"""What runs are compared by; without ``sampled.`` in the mode of the evaluation's headline."""
HELD_OUT_SCORES: tuple[Score, ...] = tuple(score for score in get_args(Score) if score != "over_training")

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


def settled(run: Run) -> pd.DataFrame:
    """The second half of the iterations done: the replay has filled and its age has settled."""
    return run.frame[2 * run.frame["iteration"] > run.iterations]


def settled_mean(run: Run, metric: str) -> float | None:
    """Mean over the settled half; of a ``_max``, the greatest."""
    rows = settled(run)
    return _mean(rows[metric], metric) if metric in rows else None


def _mean(values: pd.Series[float], metric: str) -> float | None:
    known = values.dropna()
    if known.empty:
        return None
    return float(known.max() if metric.endswith("_max") else known.mean())


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
    return _mean(pd.Series([settled_mean(run, metric) for run in runs], dtype=float), metric)


def numerical_floor(runs: Sequence[Run]) -> float | None:
    """99th percentile of |log rho| between two forwards with the same weights: the greatest of the runs."""
    values = [run.rows[-1].get("staleness/numerical_floor_p99") for run in runs]
    return max((float(value) for value in values if value is not None), default=None)


def task_scores(run: Run, source: Source, score: Score = "success_once") -> dict[str, float]:
    """A run's score on each task; empty where it is not known.

    From held-out episodes at the end of training, in the mode of the headline or with sampled actions, or
    (``training``) from the last 100 training episodes of the run's last iterations; those know
    ``success_once`` alone. ``over_training`` is always of training episodes, and one number for all tasks.
    """
    if score == "over_training":
        success = success_over_training(run)
        return {} if success is None else {", ".join(run.tasks): success}
    if source == "evaluation":
        mode, _, name = score.rpartition(".")
        values = run.evaluation or {}
        if mode and values.get("mode") != mode:
            values = values.get(mode) or {}
        tasks = values.get("tasks") or {run.tasks[0]: values}
        return {task: float(own[name]) for task, own in tasks.items() if own.get(name) is not None}
    if score != "success_once":
        return {}
    names = {task: f"task/{task}/success_once_recent" for task in run.tasks}
    if len(run.tasks) == 1:
        names = {run.tasks[0]: "success_once_recent"}
    known = {task: run.known(name)[name] for task, name in names.items()}
    # No finished episode is no success yet.
    return {task: float(values.iloc[-1]) if len(values) else 0.0 for task, values in known.items()}


def success_over_training(run: Run) -> float | None:
    """Mean over training of the success of the last 100 episodes: high for a run that learned early."""
    steps, success = run.known("success_once_recent").to_numpy(float).T
    if len(steps) < 2:
        return float(success[0]) if len(steps) else None
    return float(np.trapezoid(success, steps) / (steps[-1] - steps[0]))
