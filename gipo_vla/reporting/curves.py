"""Curves over env steps: runs of one configuration brought onto common points and aggregated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pandas as pd

from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.grouping import Configuration
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.statistics import Array, Estimate, estimate_curve
from gipo_vla.reporting.table import Record, Table

POINTS = 200
"""Of a curve, at most."""
RESAMPLES = 500
"""Of a curve's bootstrap: enough for a band, and every point of every curve pays for them."""

SUCCESS = {"success_once_recent": "success of the last 100 episodes"}
HELD_OUT = {"evaluation/success_once": "success on held-out states"}
"""Not a metric of metrics.jsonl: ``success_once`` of evaluations.jsonl."""
STALENESS = {
    "staleness/lag_iterations_mean": "mean lag (iterations)",
    "staleness/p95_abs_log_ratio": "P95 |log ρ|",
    "staleness/effective_sample_size_old": "effective sample size, old",
    "staleness/damped_fraction_old": "damped fraction, old",
}
HEALTH = {
    "policy/entropy": "entropy (nats a token)",
    "value/explained_variance": "explained variance",
    "gradient_norm/policy": "policy gradient norm",
    "loss/value": "value loss",
}
CREDIT = {
    "credit/merge_ratio": "merge ratio",
    "credit/nonzero_share": "steps with a graph advantage",
    "credit/fallback_share": "groups fallen back",
    "credit/gain_std": "spread of information gains",
    "credit/belief_brier": "Brier score of the belief",
    "credit/belief_calibration_error": "calibration error of the belief",
}
METRICS = SUCCESS | HELD_OUT | STALENESS | HEALTH | CREDIT
"""What curves are made of, and what it is called; each group is a figure."""


@dataclass(frozen=True)
class Curve:
    """The aggregate of one metric over the runs of one configuration."""

    configuration: Configuration
    metric: str
    env_steps: Array
    estimate: Estimate[Array]


Curves = Mapping[tuple[str, str], Curve]
"""(configuration's label, metric) -> curve; absent where not logged."""


def aggregate(comparison: Comparison) -> Curves:
    """Curves of all configurations."""
    return {
        (one.label, metric): curve
        for one in comparison.configurations
        for metric in METRICS
        if (curve := aggregate_metric(one, metric)) is not None
    }


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
    if metric in HELD_OUT:
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


def table(curves: Curves) -> Table:
    """All curves in long form."""
    records: list[Record] = []
    for (label, metric), curve in curves.items():
        made = curve.estimate
        for place, steps in enumerate(curve.env_steps):
            records.append(
                {
                    "configuration": label,
                    "metric": metric,
                    "env_steps": round(steps),
                    "iqm": float(made.value[place]),
                    "low_95": None if made.low is None else float(made.low[place]),
                    "high_95": None if made.high is None else float(made.high[place]),
                    "runs": made.count,
                }
            )
    return Table.of("curves", "Curves over env steps", records)
