"""Baselines for old data beside GIPO, the arithmetic of docs/results/old_data_baselines.md.

::

    python -m gipo_vla.studies.old_data_baselines [docs/results/data/old_data_baselines ...] [rates=FOLDER]
        [claim=FOLDER] [untrained=FOLDER] [out=FOLDER]

The plan (score, pairs, rates, correction) was committed before the first run. GIPO, PPO and SAPO are those of
experiment A (``gipo_vla.studies.old_data``) with the seeds of the plan. With part of the runs this says what
they give, and Holm's correction stands there once all pairs of a regime do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gipo_vla import cli, options
from gipo_vla.reporting.runs import Run, read_runs
from gipo_vla.studies.old_data import STALE
from gipo_vla.studies.scoring import arms_table, blocked_difference, contrast, holm, returns, scores

ARM = {"objective": "objective.name", "rate": "learner.policy_learning_rate"}
"""What tells arms apart: columns, and keys of the configuration."""
BASELINES = ("decoupled_ppo", "m2po", "cispo", "vespo", "dppo")
SEEDS = (234, 360, 501)
PAIRS = 9
"""Tasks times seeds of a comparison."""
COMMON_RATE = 3e-4
GIPO_RATE = 1e-3
"""GIPO's own rate, chosen as those of the baselines are."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    rates: Path = Path("docs/results/data/old_data_baseline_rates")
    """Runs that choose each baseline's own learning rate."""
    claim: Path = Path("docs/results/data/old_data_claim")
    """Runs of experiment A."""
    untrained: Path = Path("docs/results/data/old_data_untrained")
    """Runs of the untrained policy, which give R_init."""
    out: Path | None = None
    """Where scores.csv and differences.csv are written; nothing is written without it."""


def own_rates(runs: Sequence[Run]) -> dict[str, float]:
    """Return the learning rate with the largest sampled return for each objective that ``runs`` have."""
    found = returns(runs, ARM).groupby(level=[*ARM]).mean().groupby(level="objective").idxmax()
    return {str(objective): float(rate) for objective, rate in found}


def of_the_plan(runs: Sequence[Run]) -> list[Run]:
    """Return the runs on stale data with the seeds of the plan."""
    return [run for run in runs if run.config["replay.capacity"] == STALE and run.seed in SEEDS]


def differences(values: pd.Series[float], rates: Mapping[str, float], gipo_rate: float) -> pd.DataFrame:
    """Return a row for each baseline with at least two pairs of one task: it minus GIPO.

    Args:
        values: scores by objective, rate, task and seed.
        rates: learning rate of each baseline; those without one are left out.
        gipo_rate: that of GIPO.
    """
    rows = {}
    for name in BASELINES:
        if name not in rates:
            continue
        pairs = contrast(values, {(name, rates[name]): 1, ("gipo", gipo_rate): -1}, [*ARM])
        if len(pairs) and pairs.groupby(level="task").size().max() > 1:
            rows[name] = {"rate": rates[name], **blocked_difference(pairs)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    if len(table) == len(BASELINES) and (table["pairs"] == PAIRS).all():
        table["p_holm"] = holm(table["p"].to_list())
    return table


def regimes(values: pd.Series[float], rates: Mapping[str, float]) -> dict[str, pd.DataFrame]:
    """Return ``differences`` at the common rate, and where each objective has its own."""
    return {
        "the same rate": differences(values, dict.fromkeys(BASELINES, COMMON_RATE), COMMON_RATE),
        "rates of their own": differences(values, rates, GIPO_RATE),
    }


def main(arguments: Sequence[str]) -> int:
    """Print the rates, the arms and the differences."""
    parsed = options.parse(arguments, Options, __doc__ or "")
    if parsed is None:
        return 0
    own, rest = parsed
    rate_runs = read_runs([own.rates])[0]
    print(returns(rate_runs, ARM).unstack("rate").round(0).to_string())
    folders = [Path(text) for text in rest] or [Path("docs/results/data/old_data_baselines")]
    runs = of_the_plan(read_runs([*folders, own.claim])[0])
    values = scores(runs, read_runs([own.untrained])[0], ARM)
    print("", arms_table(runs, values, ARM).round(3).to_string(), sep="\n")
    tables = regimes(values, own_rates(rate_runs))
    for name, table in tables.items():
        print(f"\nminus GIPO, {name}:", table.round(4).to_string() if len(table) else "no pairs yet")
    if own.out:
        own.out.mkdir(parents=True, exist_ok=True)
        values.rename("score").to_csv(own.out / "scores.csv")
        pd.concat(tables, names=["regime", "objective"]).to_csv(own.out / "differences.csv")
    return 0


if __name__ == "__main__":
    cli.run(main)
