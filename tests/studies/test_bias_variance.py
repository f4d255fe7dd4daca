"""Moments against sums written out independently in plain Python, and what must hold of any estimator."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from gipo_envs.errors import UserError
from gipo_vla.reporting.style import SETTINGS
from gipo_vla.studies import bias_variance, bias_variance_figures
from gipo_vla.studies.bias_variance_tables import best_table, better, estimators_table, finding, wrong_sign
from gipo_vla.studies.gradient_moments import (
    BEHAVIOURS,
    ESTIMATORS,
    RIGHT,
    TARGETS,
    all_moments,
    by_case,
    coefficients,
    moments,
)
from gipo_vla.studies.grid_world import advantages

CASES = list(product(TARGETS, BEHAVIOURS))


def gaussian(sigma: float, ratio: float) -> float:
    return math.exp(-(math.log(ratio) ** 2) / (2 * sigma**2))


def sapo(ratio: float, advantage: float) -> float:
    tau = 1.0 if advantage > 0 else 2.0
    gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return 4 * gate * (1 - gate) * ratio


def ppo(ratio: float, advantage: float) -> float:
    clipped = ratio > 1.2 if advantage > 0 else ratio < 0.8
    return 0.0 if clipped else ratio


CLOSED_FORMS: dict[str, Callable[[float, float], float]] = {
    "gipo sigma=0.5": lambda ratio, advantage: gaussian(0.5, ratio) * ratio,
    "gipo sigma=2": lambda ratio, advantage: gaussian(2, ratio) * ratio,
    "gipo half sigma=1": lambda ratio, advantage: gaussian(1 if advantage > 0 else 0.5, ratio) * ratio,
    "ppo epsilon=0.2": ppo,
    "sapo": sapo,
    "no_clip": lambda ratio, advantage: ratio,
    "zero": lambda ratio, advantage: 0.0,
}


@pytest.mark.parametrize("estimator", CLOSED_FORMS)
def test_moments_match_direct_sums(estimator: str) -> None:
    for target, behaviour in CASES:
        policy, acting = TARGETS[target][0], BEHAVIOURS[behaviour]
        advantage = advantages(TARGETS[target])[0]
        values, weights = [], []
        for action in range(4):
            ratio = policy[action] / acting[action]
            score = (1.0 if action == RIGHT else 0.0) - policy[RIGHT]
            weight = CLOSED_FORMS[estimator](ratio, advantage[action])
            values.append(weight * advantage[action] * score)
            weights.append(float(acting[action]))
        mean = math.fsum(w * v for w, v in zip(weights, values))
        second = math.fsum(w * v * v for w, v in zip(weights, values))
        result = moments(target, behaviour, estimator)
        assert result.mean == pytest.approx(mean, rel=1e-12, abs=1e-15)
        assert result.variance == pytest.approx(second - mean**2, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.5, 1.0, 2.0])
def test_expected_weight_matches_direct_summation(sigma: float) -> None:
    """E_mu[w rho] under given mu and pi, and that it is E_pi[w]."""
    for target, behaviour in CASES:
        policy, acting = TARGETS[target][0], BEHAVIOURS[behaviour]
        used = coefficients(ESTIMATORS[f"gipo sigma={sigma:g}"], np.log(policy / acting), np.ones(4))
        expected = sum(p * gaussian(sigma, p / m) for p, m in zip(policy, acting))
        assert acting @ used == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("target", "behaviour"), CASES)
def test_no_clip_is_unbiased_and_points_the_right_way(target: str, behaviour: str) -> None:
    result = moments(target, behaviour, "no_clip")
    assert result.bias == pytest.approx(0, abs=1e-15)
    assert result.cosine == pytest.approx(1)


def test_the_true_gradient_is_the_derivative_of_the_return() -> None:
    """pi(right) A(right) against a finite difference of sum_a pi(a) Q(a) with Q held."""
    for target, policies in TARGETS.items():
        logits = np.log(policies[0])
        gain = []
        for step in (1e-6, -1e-6):
            moved = logits + step * np.eye(4)[RIGHT]
            moved = np.exp(moved) / np.exp(moved).sum()
            gain.append(float(moved @ advantages(policies)[0]))
        true = moments(target, "uniform", "no_clip").true_gradient
        assert (gain[0] - gain[1]) / 2e-6 == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize("estimator", ["gipo sigma=1", "ppo epsilon=0.2", "sapo", "no_clip"])
def test_mse_of_a_mean_is_squared_bias_plus_variance_over_n(estimator: str, samples: int) -> None:
    """Against the expectation over every possible draw of n actions."""
    target, behaviour = "good", "left 0.70"
    policy, acting = TARGETS[target][0], BEHAVIOURS[behaviour]
    advantage = advantages(TARGETS[target])[0]
    used = coefficients(ESTIMATORS[estimator], np.log(policy / acting), advantage)
    gradients = used * advantage * ((np.arange(4) == RIGHT) - policy[RIGHT])
    true = policy[RIGHT] * advantage[RIGHT]
    expected = sum(
        math.prod(acting[list(draw)]) * (np.mean(gradients[list(draw)]) - true) ** 2
        for draw in product(range(4), repeat=samples)
    )
    assert moments(target, behaviour, estimator).mse(samples) == pytest.approx(expected, rel=1e-12)


def test_the_zero_estimator_errs_by_the_whole_gradient_whatever_n() -> None:
    for target, behaviour in CASES:
        result = moments(target, behaviour, "zero")
        assert result.variance == 0 and result.signal_to_noise is None and result.cosine is None
        assert result.mse(1) == result.mse(1000) == pytest.approx(result.true_gradient**2)
        assert result.relative_mse(7) == pytest.approx(1)


def test_on_policy_all_objectives_are_one() -> None:
    on_policy = [one for one in all_moments() if one.on_policy and one.estimator != "zero"]
    assert {(one.target, one.behaviour) for one in on_policy} == {
        ("untrained", "uniform"),
        ("good", "right 0.70"),
        ("poor", "left 0.70"),
    }
    for one in on_policy:
        plain = moments(one.target, one.behaviour, "no_clip")
        assert (one.mean, one.variance) == pytest.approx((plain.mean, plain.variance))


def test_bias_of_gipo_shrinks_as_sigma_grows() -> None:
    for target, behaviour in CASES:
        wide = [abs(moments(target, behaviour, f"gipo sigma={sigma}").bias) for sigma in (1, 2)]
        assert wide[1] <= wide[0] + 1e-15


def test_finding_states_its_numbers_and_its_caveat() -> None:
    results = all_moments()
    assert len(by_case(results)) == 21
    lines = finding(results)
    best = {row[0]: row for row in best_table(results).rows}
    assert f"least MSE in {best['zero'][1]} of 21 cases" in lines[0] and best["zero"][1] == 6
    assert f"sigma 2: {better(results, 'gipo sigma=2', 'ppo epsilon=0.2', 30)} of 18" in lines[2]
    assert wrong_sign(results, "no_clip") == 0
    assert lines[-1].startswith("Caveat")
    assert len(estimators_table(results).rows) == len(ESTIMATORS)


def test_command_writes_figures_tables_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bias_variance.main([f"out={tmp_path}"]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    values = json.loads(output)
    assert values["cases"] == 21 and values["seconds"] < 60
    assert sorted(values["files"]) == sorted(path.name for path in tmp_path.iterdir())
    rows = (tmp_path / "cases.csv").read_text().splitlines()
    assert len(rows) == 1 + 21 * len(ESTIMATORS)


def test_labels_of_logarithmic_axes_are_numbers() -> None:
    with matplotlib.rc_context(SETTINGS):
        figure = bias_variance_figures.mse_cases(all_moments())
        figure.draw_without_rendering()
    corner = figure.axes[2 * len(BEHAVIOURS)]  # the first of the last row has both axes labelled
    assert [label.get_text() for label in corner.get_xticklabels()] == ["1", "100", "10000"]
    assert "0.01" in [label.get_text() for label in corner.get_yticklabels()]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown option 'sigma'; available: out"):
        bias_variance.main(["sigma=1"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        bias_variance.main([f"out={tmp_path / 'file'}"])
