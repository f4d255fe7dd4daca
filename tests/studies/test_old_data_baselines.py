"""The arithmetic of the comparison with baselines for old data, by hand-worked numbers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest

from gipo_vla.reporting.runs import Run
from gipo_vla.studies import old_data_baselines as study
from gipo_vla.studies import scoring
from gipo_vla.studies.old_data_baselines import BASELINES, SEEDS


def run(objective: str, rate: float, value: float, seed: int = 1, capacity: int = 64_000) -> Run:
    config = {
        "objective.name": objective,
        "learner.policy_learning_rate": rate,
        "replay.capacity": capacity,
        "seed": seed,
    }
    tasks = {"window-close-v3": {"mean_return": value}}
    return Run("a", config, [{"iteration": 1}], {"mode": "greedy", "tasks": {}, "sampled": {"tasks": tasks}})


def table(arms: dict[tuple[str, float], float]) -> pd.Series[float]:
    """Scores of three tasks and seeds: the arm's, plus what pair and arm have to themselves."""
    noise = np.random.default_rng(0)
    rows = {
        (*arm, task, seed): value + noise.normal(0, 0.01)
        for arm, value in arms.items()
        for task, seed in product(scoring.REFERENCE, SEEDS)
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=[*study.ARM, "task", "seed"])
    return pd.Series(list(rows.values()), index)


def test_the_rate_with_the_largest_return_is_taken_for_each_objective() -> None:
    runs = [run("m2po", 3e-4, 5.0), run("m2po", 1e-3, 7.0), run("m2po", 3e-3, 6.0), run("dppo", 3e-4, 2.0)]
    assert study.own_rates(runs) == {"m2po": 1e-3, "dppo": 3e-4}


def test_only_stale_runs_with_the_seeds_of_the_plan_count() -> None:
    runs = [run("gipo", 3e-4, 1.0, seed) for seed in (234, 502)]
    runs.append(run("gipo", 3e-4, 1.0, 234, capacity=3200))
    assert study.of_the_plan(runs) == runs[:1]


def test_each_regime_compares_with_gipo_at_its_own_rate() -> None:
    values = table({("gipo", 3e-4): 0.7, ("gipo", 1e-3): 0.9, ("m2po", 3e-4): 0.5, ("m2po", 3e-3): 1.0})
    same, own = study.regimes(values, {"m2po": 3e-3}).values()
    assert same.loc["m2po", "mean"] == pytest.approx(-0.2, abs=0.02)
    assert own.loc["m2po", "mean"] == pytest.approx(0.1, abs=0.02)
    assert (own.loc["m2po", "rate"], own.loc["m2po", "pairs"]) == (3e-3, 9)
    assert "p_holm" not in own


def test_holm_stands_there_once_all_baselines_are_complete() -> None:
    values = table(
        {("gipo", 3e-4): 0.7} | {(name, 3e-4): 0.7 + at / 100 for at, name in enumerate(BASELINES)}
    )
    found = study.differences(values, dict.fromkeys(BASELINES, 3e-4), 3e-4)
    assert [*found.index] == [*BASELINES]
    assert found["p_holm"].tolist() == pytest.approx(scoring.holm(found["p"].tolist()))
    short = study.differences(values.iloc[:-1], dict.fromkeys(BASELINES, 3e-4), 3e-4)
    assert "p_holm" not in short and short.loc["dppo", "pairs"] == 8
