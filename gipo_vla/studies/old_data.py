"""Experiment A of docs/results/old_data.md, scores and intervals: do objectives differ on old data?

::

    python -m gipo_vla.studies.old_data [docs/results/data/old_data_claim] [untrained=FOLDER] [out=FOLDER]

The plan (scores, comparisons, corrections, words) was committed before the first run; this is its arithmetic.
With part of the runs it says what they give and how many pairs stand behind it, and no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gipo_envs.errors import UserError
from gipo_vla import cli, options
from gipo_vla.reporting.runs import Run, read_runs
from gipo_vla.reporting.summary import task_scores

REFERENCE = {"button-press-v3": 1476.0, "faucet-open-v3": 1725.0, "window-open-v3": 1407.0}
"""R_ref of the plan, by task."""
PAIRS = 15
"""Tasks times seeds of the whole experiment."""
STALE, FRESH = 64_000, 3_200

ARM_KEYS = ("objective.name", "replay.capacity", "learner.policy_learning_rate")
Arm = tuple[str, int, float]
"""Objective, capacity of the replay, learning rate of the policy."""
GIPO, PPO, SAPO = (("gipo", STALE, 3e-4), ("ppo", STALE, 3e-4), ("sapo", STALE, 3e-4))
FRESH_GIPO, FRESH_PPO = (("gipo", FRESH, 3e-4), ("ppo", FRESH, 3e-4))
TUNED_GIPO, TUNED_PPO = (("gipo", STALE, 1e-3), ("ppo", STALE, 3e-3))

PRIMARY: Mapping[str, Mapping[Arm, int]] = {
    "GIPO - PPO, stale": {GIPO: 1, PPO: -1},
    "the same, minus fresh": {GIPO: 1, PPO: -1, FRESH_GIPO: -1, FRESH_PPO: 1},
    "GIPO 1e-3 - PPO 3e-3, stale": {TUNED_GIPO: 1, TUNED_PPO: -1},
}
SECONDARY: Mapping[str, Mapping[Arm, int]] = {"GIPO - SAPO, stale": {GIPO: 1, SAPO: -1}}


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    untrained: Path = Path("docs/results/data/old_data_untrained")
    """Runs of the untrained policy, which give R_init."""
    out: Path | None = None
    """Where scores.csv and differences.csv are written; nothing is written without it."""


def scores(runs: Sequence[Run], untrained: Sequence[Run]) -> pd.Series[float]:
    """Return ``(R - R_init) / (R_ref - R_init)`` of each run, by arm, task and seed."""
    initial = returns(untrained).groupby("task").mean()
    trained = returns(runs)
    task = trained.index.get_level_values("task")
    low, high = initial.reindex(task).to_numpy(), pd.Series(REFERENCE).reindex(task).to_numpy()
    return (trained - low) / (high - low)


def returns(runs: Sequence[Run]) -> pd.Series[float]:
    """Return the held-out returns with sampled actions.

    Raises:
        UserError: a run does not have it, or two runs have the same settings, task and seed.
    """
    rows = {}
    for run in runs:
        arm = tuple(run.config[key] for key in ARM_KEYS)
        known = task_scores(run, "evaluation", "sampled.mean_return")
        if not known:
            raise UserError(f"{run.name} has no evaluation with sampled actions")
        for task, value in known.items():
            if (*arm, task, run.seed) in rows:
                raise UserError(f"{run.name} is there twice")
            rows[*arm, task, run.seed] = value
    index = pd.MultiIndex.from_tuples(list(rows), names=["objective", "capacity", "rate", "task", "seed"])
    return pd.Series(list(rows.values()), index)


DIAGNOSTICS = {
    "P95 |log rho|": "staleness/p95_abs_log_ratio",
    "lag": "staleness/lag_iterations_mean",
    "zero fraction": "staleness/zero_fraction",
    "damped fraction": "staleness/damped_fraction",
    "entropy": "policy/entropy",
}
"""Columns of ``arms_table``, and the metrics that they are of."""


def arms_table(runs: Sequence[Run], values: pd.Series[float]) -> pd.DataFrame:
    """Return a row an arm: runs, mean and deviation of their ``scores``, and means over the runs of what the
    plan calls secondary: success at the end of held-out episodes (sampled), return over training, and
    diagnostics of the second half of training."""
    arm = values.index.names[: len(ARM_KEYS)]
    rows: list[dict[Any, Any]] = []
    for run in runs:
        half = run.frame[run.frame["iteration"] > run.iterations / 2]
        success = task_scores(run, "evaluation", "sampled.success_at_end").values()
        row: dict[Any, Any] = dict(zip(arm, (run.config[key] for key in ARM_KEYS), strict=True))
        row["success at end"] = np.mean([*success])
        row["return over training"] = run.frame["episode_return"].mean()
        rows.append(
            row | {name: half[metric].mean() for name, metric in DIAGNOSTICS.items() if metric in half}
        )
    own = values.groupby(arm).agg(["count", "mean", "std"])
    return own.join(pd.DataFrame(rows).groupby(arm).mean())


def contrast(values: pd.Series[float], signs: Mapping[Arm, int]) -> pd.Series[float]:
    """Return the signed sum over arms, by task and seed; pairs that lack an arm are left out."""
    arms = [one for _, one in values.groupby(["objective", "capacity", "rate"])]
    known = {one.index[0][:3]: one.droplevel(["objective", "capacity", "rate"]) for one in arms}
    if not known.keys() >= signs.keys():
        return pd.Series(dtype=float)
    parts = [sign * known[arm] for arm, sign in signs.items()]
    return pd.concat(parts, axis=1, join="inner").sum(axis=1)


def blocked_difference(differences: pd.Series[float]) -> dict[str, float]:
    """Return mean, 95 % interval and p-values of paired differences with the task as block.

    Differences are centred within their task; the standard error is their pooled deviation, over pairs minus
    tasks degrees of freedom, divided by the root of the number of pairs. Beside the t stands the permutation
    test that flips the signs of pairs (all of them, two-sided).

    Args:
        differences: by task and seed, at least two of one task.
    """
    count = len(differences)
    freedom = count - differences.index.get_level_values("task").nunique()
    residuals = differences - differences.groupby("task").transform("mean")
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


def differences_table(values: pd.Series[float]) -> pd.DataFrame:
    """Return a row for each comparison with at least two pairs of one task.

    Holm's correction stands there once all pairs of the primary comparisons do.
    """
    rows = {}
    for name, signs in {**PRIMARY, **SECONDARY}.items():
        pairs = contrast(values, signs)
        if len(pairs) and pairs.groupby("task").size().max() > 1:
            rows[name] = blocked_difference(pairs)
    table = pd.DataFrame.from_dict(rows, orient="index")
    primary = [name for name in PRIMARY if name in table.index and table.loc[name, "pairs"] == PAIRS]
    if len(primary) == len(PRIMARY):
        table.loc[primary, "p_holm"] = holm(table.loc[primary, "p"].to_list())
    return table


def verdict(low: float, high: float) -> str:
    """Return the plan's word for the interval of the first comparison."""
    if low > 0.2:
        return "reproduced"
    if low > 0:
        return "supported"
    return "contradicted" if high < 0 else "not told apart"


def main(arguments: Sequence[str]) -> int:
    """Print the scores of the arms, the differences and, once the comparison is complete, the plan's word."""
    parsed = options.parse(arguments, Options, __doc__ or "")
    if parsed is None:
        return 0
    own, rest = parsed
    folders = [Path(text) for text in rest] or [Path("docs/results/data/old_data_claim")]
    runs = read_runs(folders)[0]
    values = scores(runs, read_runs([own.untrained])[0])
    arms = arms_table(runs, values)
    differences = differences_table(values)
    told = differences.round(4).to_string() if len(differences) else "no two arms share two seeds of a task"
    print(arms.round(3).to_string(), told, sep="\n\n")
    first = next(iter(PRIMARY))
    if first in differences.index and differences.loc[first, "pairs"] == PAIRS:
        print(f"\n{first}: {verdict(*differences.loc[first, ['low', 'high']])}")
    else:
        print(f"\nno verdict: {first} needs {PAIRS} pairs of task and seed")
    if own.out:
        own.out.mkdir(parents=True, exist_ok=True)
        values.rename("score").to_csv(own.out / "scores.csv")
        differences.to_csv(own.out / "differences.csv")
    return 0


if __name__ == "__main__":
    cli.run(main)
