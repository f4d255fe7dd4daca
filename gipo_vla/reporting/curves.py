"""Curves over env steps: runs of one configuration brought onto common points and aggregated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.grouping import Configuration
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.statistics import Array, CurveEstimate, estimate_curve
from gipo_vla.reporting.table import Table

POINTS = 200
"""Of a curve, at most."""
RESAMPLES = 500
"""Of a curve's bootstrap: enough for a band, and every point of every curve pays for them."""

SUCCESS = "success_once_recent"
HELD_OUT = "evaluation/success_once"
"""Not a metric of metrics.jsonl: ``success_once`` of evaluations.jsonl."""

STALENESS = (
    "staleness/lag_iterations_mean",
    "staleness/p95_abs_log_ratio",
    "staleness/effective_sample_size_old",
    "staleness/damped_fraction_old",
)
HEALTH = ("policy/entropy", "value/explained_variance", "gradient_norm/policy", "loss/value")
CREDIT = (
    "credit/merge_ratio",
    "credit/nonzero_share",
    "credit/fallback_share",
    "credit/gain_std",
    "credit/belief_brier",
    "credit/belief_calibration_error",
)
METRICS = (SUCCESS, HELD_OUT, *STALENESS, *HEALTH, *CREDIT)


@dataclass(frozen=True)
class Curve:
    """The aggregate of one metric over the runs of one configuration."""

    configuration: Configuration
    metric: str
    env_steps: Array
    estimate: CurveEstimate


def aggregate(comparison: Comparison) -> dict[tuple[str, str], Curve]:
    """Curves of all configurations: (configuration's label, metric) -> curve; absent where not logged."""
    made = [
        curve
        for one in comparison.configurations
        for metric in METRICS
        if (curve := aggregate_metric(one, metric)) is not None
    ]
    return {(curve.configuration.label, curve.metric): curve for curve in made}


def aggregate_metric(configuration: Configuration, metric: str) -> Curve | None:
    """Interquartile mean of a metric at points that every run has reached; None if a run lacks it."""
    lines = [series(run, metric) for run in configuration.runs]
    if any(len(steps) == 0 for steps, _ in lines):
        return None
    grid = common_points([steps for steps, _ in lines])
    if len(grid) == 0:
        return None
    values = [np.interp(grid, steps, own) for steps, own in lines]
    strata = [
        np.stack([own for _, own in members])
        for _, members in groupby(zip(configuration.runs, values), key=lambda pair: pair[0].tasks)
    ]
    return Curve(configuration, metric, grid, estimate_curve(strata, resamples=RESAMPLES))


def series(run: Run, metric: str) -> tuple[Array, Array]:
    """Env steps and values of a metric where it is known."""
    known = run.known(metric)
    if metric == HELD_OUT:
        known = pd.DataFrame(run.evaluations, columns=["env_steps", "success_once"]).dropna()
    steps, values = known.to_numpy(float).T
    return steps, values


def common_points(steps: Sequence[Array]) -> Array:
    """Env steps to compare at: the runs' own where all agree, else even ones within the span of all.

    No curve is drawn past the shortest run: there, the average would be over other runs.
    """
    if all(np.array_equal(own, steps[0]) for own in steps) and len(steps[0]) <= POINTS:
        return steps[0]
    low, high = max(own[0] for own in steps), min(own[-1] for own in steps)
    if high < low:
        return np.empty(0)
    return np.linspace(low, high, min(POINTS, max(len(own) for own in steps)))


def table(curves: dict[tuple[str, str], Curve]) -> Table:
    """All curves in long form."""
    frames = [
        pd.DataFrame(
            {
                "configuration": curve.configuration.label,
                "metric": curve.metric,
                "env_steps": curve.env_steps.round().astype(int),
                "iqm": curve.estimate.value,
                "low_95": curve.estimate.low,
                "high_95": curve.estimate.high,
                "runs": curve.estimate.count,
            }
        )
        for curve in curves.values()
    ]
    if not frames:
        return Table("curves", "Curves over env steps", (), [])
    rows = [row for frame in frames for row in frame.astype(object).to_numpy().tolist()]
    return Table("curves", "Curves over env steps", tuple(frames[0].columns), rows)
