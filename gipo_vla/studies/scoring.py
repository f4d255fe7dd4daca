"""What the studies of finished runs share: scores that tell settings apart, and intervals for few runs.

The score of a run is the mean return R of its held-out episodes with sampled actions, scaled by references
that were fixed before the first run (docs/results/old_data.md):

    score = (R - R_init) / (R_ref - R_init)

R_init is the untrained policy's. Nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gipo_envs.errors import UserError
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.summary import task_scores

REFERENCE = {"button-press-v3": 1476.0, "faucet-open-v3": 1725.0, "window-open-v3": 1407.0}
"""R_ref by task."""

DIAGNOSTICS = {
    "P95 |log rho|": "staleness/p95_abs_log_ratio",
    "lag": "staleness/lag_iterations_mean",
    "zero fraction": "staleness/zero_fraction",
    "damped fraction": "staleness/damped_fraction",
    "entropy": "policy/entropy",
}
"""Columns of ``arms_table``, and the metrics that they are of."""


def returns(runs: Sequence[Run], arm: Mapping[str, str]) -> pd.Series[float]:
    """Return the held-out returns with sampled actions, by the columns of ``arm``, task and seed.

    Args:
        arm: what tells settings apart: names of columns, and the keys of the configuration that they hold.

    Raises:
        UserError: a run does not have it, or two runs have the same settings, task and seed.
    """
    rows = {}
    for run in runs:
        settings = arm_of(run, arm)
        known = task_scores(run, "evaluation", "sampled.mean_return")
        if not known:
            raise UserError(f"{run.name} has no evaluation with sampled actions")
        for task, value in known.items():
            if (*settings, task, run.seed) in rows:
                raise UserError(f"{run.name} is there twice")
            rows[*settings, task, run.seed] = value
    index = pd.MultiIndex.from_tuples(list(rows), names=[*arm, "task", "seed"])
    return pd.Series(list(rows.values()), index)


def arm_of(run: Run, arm: Mapping[str, str]) -> tuple[Any, ...]:
    """Return the settings of a run that ``arm`` names."""
    return tuple(run.config[key] for key in arm.values())


def scores(runs: Sequence[Run], untrained: Sequence[Run], arm: Mapping[str, str]) -> pd.Series[float]:
    """Return the score of each run, by the columns of ``arm``, task and seed."""
    initial = returns(untrained, arm).groupby("task").mean()
    trained = returns(runs, arm)
    task = trained.index.get_level_values("task")
    low, high = initial.reindex(task).to_numpy(), pd.Series(REFERENCE).reindex(task).to_numpy()
    return (trained - low) / (high - low)


def arms_table(runs: Sequence[Run], values: pd.Series[float], arm: Mapping[str, str]) -> pd.DataFrame:
    """Return a row an arm: runs, mean and deviation of their scores, and means over the runs of what stands
    beside them: success at the end of held-out episodes (sampled), return over training, and diagnostics of
    the second half of training.

    Args:
        values: ``scores`` of the runs.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        half = run.frame[run.frame["iteration"] > run.iterations / 2]
        success = task_scores(run, "evaluation", "sampled.success_at_end").values()
        row = dict(zip(arm, arm_of(run, arm), strict=True))
        row["success at end"] = np.mean([*success])
        row["return over training"] = run.frame["episode_return"].mean()
        rows.append(
            row | {name: half[metric].mean() for name, metric in DIAGNOSTICS.items() if metric in half}
        )
    own = values.groupby(level=[*arm]).agg(["count", "mean", "std"])
    return own.join(pd.DataFrame(rows).groupby([*arm]).mean())


def contrast(
    values: pd.Series[float], signs: Mapping[tuple[Any, ...], int], arm: Sequence[str]
) -> pd.Series[float]:
    """Return the signed sum over arms for each pair, by the other columns of the index.

    Pairs that lack an arm are left out.

    Args:
        values: scores by the columns ``arm`` and at least one other.
        signs: values of the columns ``arm``, and what a score there counts.
    """
    known: dict[Any, pd.Series[float]] = {}
    for settings, own in values.groupby(level=[*arm]):
        known[settings] = own.droplevel([*arm])
    if not known.keys() >= signs.keys():
        return pd.Series(dtype=float)
    parts = [sign * known[settings] for settings, sign in signs.items()]
    return pd.concat(parts, axis=1, join="inner").sum(axis=1)


def blocked_difference(differences: pd.Series[float], block: str = "task") -> dict[str, float]:
    """Return mean, 95 % interval and p-values of paired differences.

    Differences are centred within their block; the standard error is their pooled deviation, over pairs minus
    blocks degrees of freedom, divided by the root of the number of pairs. Beside the t stands the permutation
    test that flips the signs of pairs (all of them, two-sided).

    Args:
        differences: at least two of one block.
        block: a column of their index.
    """
    count = len(differences)
    freedom = count - differences.index.get_level_values(block).nunique()
    residuals = differences - differences.groupby(level=block).transform("mean")
    error = np.sqrt((residuals**2).sum() / freedom / count)
    mean = float(differences.mean())
    low, high = stats.t.interval(0.95, freedom, loc=mean, scale=error)
    flips = stats.permutation_test(
        (differences.to_numpy(),),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return {
        "pairs": count,
        "mean": mean,
        "low": float(low),
        "high": float(high),
        "degrees_of_freedom": freedom,
        "p": p,
        "p_permutation": float(flips.pvalue),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's steps (Holm 1979)."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected.tolist()
