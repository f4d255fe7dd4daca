"""Scores and intervals of the studies, by hand-worked numbers and by other ways to the same."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gipo_envs.errors import UserError
from gipo_vla.reporting.runs import Run
from gipo_vla.studies import scoring
from gipo_vla.studies.scoring import REFERENCE

TASKS = tuple(REFERENCE)
ARM = {"objective": "objective.name", "rate": "learner.policy_learning_rate"}
GIPO, PPO = ("gipo", 3e-4), ("ppo", 3e-4)


def run(arm: tuple[str, float], task: str, seed: int, value: float) -> Run:
    config = {**dict(zip(ARM.values(), arm, strict=True)), "seed": seed}
    tasks = {task: {"mean_return": value}}
    return Run("a", config, [{"iteration": 1}], {"mode": "greedy", "tasks": {}, "sampled": {"tasks": tasks}})


def pairs(values: np.ndarray) -> pd.Series[float]:
    """Differences of three tasks with as many seeds each."""
    index = pd.MultiIndex.from_product([TASKS[: len(values)], range(values.shape[1])], names=["task", "seed"])
    return pd.Series(values.ravel(), index)


def test_a_score_is_zero_untrained_and_one_at_the_reference() -> None:
    task = TASKS[0]
    untrained = [run(GIPO, task, seed, value) for seed, value in ((1, 50.0), (2, 150.0))]
    middle = (100 + REFERENCE[task]) / 2
    trained = [run(GIPO, task, 1, 100.0), run(PPO, task, 1, REFERENCE[task]), run(PPO, task, 2, middle)]
    values = scoring.scores(trained, untrained, ARM)
    assert values[*GIPO, task, 1] == 0
    assert values[*PPO, task, 1] == 1
    assert values[*PPO, task, 2] == pytest.approx(0.5)


def test_what_stands_beside_a_score_is_of_the_second_half_of_training_or_of_all_of_it() -> None:
    rows = [
        {"iteration": number, "episode_return": 10.0 * number, "policy/entropy": float(number)}
        for number in (1, 2, 3, 4)
    ]
    config = dict(zip(ARM.values(), GIPO, strict=True))
    runs = []
    for seed, success in ((1, 0.2), (2, 0.6)):
        held_out = {"tasks": {TASKS[0]: {"mean_return": 3.0, "success_at_end": success}}}
        evaluation = {"mode": "greedy", "tasks": {}, "sampled": held_out}
        runs.append(Run("a", config | {"seed": seed}, rows, evaluation))
    row = scoring.arms_table(runs, scoring.returns(runs, ARM), ARM).loc[GIPO]
    assert (row["count"], row["mean"]) == (2, 3.0)
    assert row["success at end"] == pytest.approx(0.4)
    assert row["return over training"] == 25 and row["entropy"] == 3.5


def test_a_run_without_sampled_evaluation_or_twice_is_refused() -> None:
    with pytest.raises(UserError, match="no evaluation with sampled"):
        scoring.returns([Run("a", dict(zip(ARM.values(), GIPO)), [{"iteration": 1}])], ARM)
    with pytest.raises(UserError, match="twice"):
        scoring.returns([run(GIPO, TASKS[0], 1, 3.0), run(GIPO, TASKS[0], 1, 4.0)], ARM)


def test_a_contrast_takes_the_pairs_that_both_arms_have() -> None:
    values = scoring.returns(
        [
            run(GIPO, TASKS[0], 1, 5.0),
            run(GIPO, TASKS[0], 2, 6.0),
            run(PPO, TASKS[0], 2, 4.5),
            run(PPO, TASKS[1], 2, 1.0),
        ],
        ARM,
    )
    assert scoring.contrast(values, {GIPO: 1, PPO: -1}, [*ARM]).to_dict() == {(TASKS[0], 2): 1.5}
    assert scoring.contrast(values, {GIPO: 1, ("sapo", 3e-4): -1}, [*ARM]).empty


def test_a_contrast_over_one_column_pairs_by_all_the_others() -> None:
    values = scoring.returns([run(GIPO, TASKS[0], 1, 5.0), run(PPO, TASKS[0], 1, 4.0)], ARM)
    found = scoring.contrast(values, {("gipo",): 1, ("ppo",): -1}, ["objective"])
    assert found.to_dict() == {(3e-4, TASKS[0], 1): 1.0}


def test_the_blocked_t_is_that_of_a_linear_model_with_a_mean_for_each_task() -> None:
    values = np.random.default_rng(0).normal([[0.1], [0.4], [0.9]], 0.2, (3, 5))
    found = scoring.blocked_difference(pairs(values))
    tasks = np.kron(np.eye(3), np.ones((5, 1)))
    coefficients, (squares,), *_ = np.linalg.lstsq(tasks, values.ravel())
    error = np.sqrt(squares / 12 * (np.linalg.inv(tasks.T @ tasks).sum() / 9))
    half = stats.t.ppf(0.975, 12) * error
    assert found["degrees_of_freedom"] == 12
    assert found["mean"] == pytest.approx(coefficients.mean())
    assert (found["low"], found["high"]) == pytest.approx((found["mean"] - half, found["mean"] + half))
    assert found["p"] == pytest.approx(2 * stats.t.sf(found["mean"] / error, 12))


def test_one_task_is_the_paired_t_test() -> None:
    values = np.array([[0.3, -0.1, 0.5, 0.2]])
    found = scoring.blocked_difference(pairs(values))
    known = stats.ttest_1samp(values[0], 0)
    assert found["p"] == pytest.approx(known.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(known.confidence_interval()))


def test_signs_are_flipped_in_all_ways() -> None:
    values = np.array([[0.3, -0.1, 0.5, 0.2], [0.1, 0.2, -0.3, 0.6]])
    flat = values.ravel()
    sums = np.array([np.dot(signs, flat) for signs in product([1, -1], repeat=8)])
    expected = np.mean(np.abs(sums) >= abs(flat.sum()) - 1e-12)
    assert scoring.blocked_difference(pairs(values))["p_permutation"] == pytest.approx(expected)


def test_holm_by_hand() -> None:
    # Smallest times three; then times two, not below the one before; the largest as it is.
    assert scoring.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert scoring.holm([0.6, 0.5, 0.9]) == pytest.approx([1, 1, 1])
