"""Aggregates and intervals against numbers found by hand or another way."""

from __future__ import annotations

import numpy as np
import pytest

from gipo_vla.reporting.statistics import estimate, estimate_curve, mean_difference


def test_interquartile_mean_drops_a_quarter_at_each_end_of_all_scores_together() -> None:
    strata = [np.array([0.0, 10.0, 2.0, 3.0]), np.array([4.0, 5.0, -9.0, 1.0])]
    assert estimate(strata).value == pytest.approx((1 + 2 + 3 + 4) / 4)


def test_seeds_are_resampled_within_their_task() -> None:
    # Every resample holds two zeros and two ones: there is nothing left to chance.
    result = estimate([np.zeros(2), np.ones(2)])
    assert (result.value, result.low, result.high, result.count) == (0.5, 0.5, 0.5, 4)


def test_interval_equals_a_direct_stratified_bootstrap() -> None:
    rng = np.random.default_rng(1)
    strata = [rng.random(5), rng.random(7) + 0.5]
    resamples = []
    for _ in range(4000):
        scores = np.sort(np.concatenate([rng.choice(own, len(own)) for own in strata]))
        resamples.append(scores[3:-3].mean())  # 12 scores, a quarter off at each end
    low, high = np.quantile(resamples, [0.025, 0.975])
    result = estimate(strata)
    assert result.low is not None and result.high is not None
    assert result.low == pytest.approx(low, abs=0.02) and result.high == pytest.approx(high, abs=0.02)
    assert result.low < result.value < result.high


def test_without_a_second_seed_there_is_no_interval() -> None:
    result = estimate([np.array([0.3, 0.5]), np.array([0.7])])
    assert result.value == pytest.approx(0.5) and result.low is None and result.high is None


def test_the_bootstrap_is_seeded() -> None:
    strata = [np.array([0.1, 0.4, 0.9])]
    assert estimate(strata) == estimate(strata)


def test_curves_are_estimated_point_by_point() -> None:
    curves = np.array([[0.0, 1.0], [0.5, 1.0], [1.0, 1.0]])
    result = estimate_curve([curves])
    assert result.low is not None and result.high is not None
    np.testing.assert_allclose(result.value, [0.5, 1.0])
    np.testing.assert_allclose([result.low[1], result.high[1]], [1.0, 1.0])
    assert 0 <= result.low[0] < 0.5 < result.high[0] <= 1


def test_mean_difference_is_a_plain_mean() -> None:
    result = mean_difference([np.array([0.0, 0.0, 0.0, 1.0])])
    assert result.estimate.value == pytest.approx(0.25)
    assert result.deviation == pytest.approx(0.5)


def test_smallest_effect_of_nine_pairs() -> None:
    """t(0.975, 8) = 2.306 and t(0.80, 8) = 0.889, from a table; nine pairs of deviation 1."""
    pairs = np.array([-1.0] * 4 + [0.0] + [1.0] * 4)
    result = mean_difference([pairs])
    assert result.deviation == 1
    assert result.smallest_effect == pytest.approx((2.306 + 0.889) / 3, abs=1e-3)
    alone = mean_difference([np.array([0.5])])
    assert (alone.deviation, alone.smallest_effect) == (None, None)
