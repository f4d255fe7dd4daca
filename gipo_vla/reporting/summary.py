"""One run in numbers: its scores, and how stale the data were that it learned from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from gipo_envs.errors import UserError
from gipo_vla.reporting.archive import read_sweep
from gipo_vla.reporting.runs import Run

STALE_LAG_ITERATIONS = 20.0
STALE_P95_ABS_LOG_RATIO = 0.5
"""A regime is called stale when both are reached: the data are old, and the policy has moved since."""

Source = Literal["evaluation", "training"]
HeldOutScore = Literal[
    "success_once",
    "success_at_end",
    "mean_return",
    "sampled.success_once",
    "sampled.success_at_end",
    "sampled.mean_return",
]
"""What runs are compared by: without ``sampled.`` in the mode of the evaluation's headline."""
Score = HeldOutScore | Literal["over_training"]
HELD_OUT_SCORES: tuple[HeldOutScore, ...] = get_args(HeldOutScore)


def recorded_score(folder: Path) -> HeldOutScore | None:
    """The score that a sweep in this folder was started with; None where there is no sweep.json.

    Raises:
        UserError: it names no score, or cannot be read.
    """
    sweep = folder / "sweep.json"
    listed = read_sweep(sweep)
    score: HeldOutScore | None = None if listed is None else listed.get("score", "success_once")
    if score not in (None, *HELD_OUT_SCORES):
        raise UserError(f"{sweep} has score {score!r}: expected one of {', '.join(HELD_OUT_SCORES)}")
    return score


LAGS = ("lag_iterations_mean", "lag_iterations_max", "lag_mean", "lag_p95", "lag_max")
BY_AGE = ("p95_abs_log_ratio", "effective_sample_size", "zero_fraction", "damped_fraction")
OTHERS = ("weight_mean", "approximate_kl", "gradient_share_old")
SETTLED = (
    *(f"staleness/{name}" for name in LAGS),
    *(f"staleness/{name}{age}" for name in BY_AGE for age in ("", "_new", "_old")),
    *(f"staleness/{name}" for name in OTHERS),
    "policy/entropy",
    "value/explained_variance",
)
"""Metrics that are reported as their mean over the settled half of a run."""


def settled(run: Run) -> pd.DataFrame:
    """The second half of the iterations done: the replay has filled and its age has settled."""
    return run.frame[2 * run.frame["iteration"] > run.iterations]


def settled_mean(run: Run, metric: str) -> float | None:
    """Mean over the settled half; of a ``_max``, the greatest."""
    return _mean(settled(run).get(metric, pd.Series(dtype=float)), metric)


def mean_over(runs: Sequence[Run], metric: str) -> float | None:
    """Mean over runs of the settled mean (of a ``_max``, the greatest)."""
    return _mean(pd.Series([settled_mean(run, metric) for run in runs], dtype=float), metric)


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
    lag, spread = (f"staleness/{name}" for name in ("lag_iterations_mean", "p95_abs_log_ratio"))
    return regime(mean_over(runs, lag), mean_over(runs, spread))


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
