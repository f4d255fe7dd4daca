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

import pandas as pd

from gipo_vla import cli, options
from gipo_vla.reporting.runs import read_runs
from gipo_vla.studies.scoring import arms_table, blocked_difference, contrast, holm, scores

PAIRS = 15
"""Tasks times seeds of the whole experiment."""
STALE, FRESH = 64_000, 3_200

ARM = {"objective": "objective.name", "capacity": "replay.capacity", "rate": "learner.policy_learning_rate"}
"""What tells arms apart: columns, and keys of the configuration."""
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


def differences_table(values: pd.Series[float]) -> pd.DataFrame:
    """Return a row for each comparison with at least two pairs of one task.

    Holm's correction stands there once all pairs of the primary comparisons do.
    """
    rows = {}
    for name, signs in {**PRIMARY, **SECONDARY}.items():
        pairs = contrast(values, signs, [*ARM])
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
    values = scores(runs, read_runs([own.untrained])[0], ARM)
    arms = arms_table(runs, values, ARM)
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
