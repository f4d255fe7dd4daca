"""Aggregates over tasks and seeds, with bootstrap intervals.

Scores come as *strata*: one array a task, whose first axis is the seeds. The interquartile mean drops the
lowest and the highest quarter of all scores together; its interval resamples seeds within each task, so
that every resample has every task. Both as in Agarwal et al., Deep Reinforcement Learning at the Edge of the
Statistical Precipice, NeurIPS 2021, arXiv 2108.13264 (the rliable library), here by way of scipy.

A percentile bootstrap over three or five seeds is known to be too narrow; it says how far chance among
*these* seeds reaches, not more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Number = TypeVar("Number")

TRIMMED = 0.25
CONFIDENCE = 0.95
RESAMPLES = 2000
POWER = 0.80
SEED = 0
"""Of the bootstrap: the same runs give the same bytes."""


@dataclass(frozen=True)
class Estimate(Generic[Number]):
    """An aggregate and its 95 % interval: a number, or an array with one for every point of a curve."""

    value: Number
    low: Number | None
    """None where a task has a single seed: nothing can be said about chance."""
    high: Number | None
    count: int
    """Scores that went in."""


def interquartile_mean(scores: Array, axis: int = 0) -> Array:
    """Mean of the middle half of the scores along an axis."""
    return np.asarray(stats.trim_mean(scores, TRIMMED, axis=axis))


def estimate(strata: Sequence[Array], statistic: Callable[..., Any] = interquartile_mean) -> Estimate[float]:
    """``statistic(array, axis)`` of the scores of all tasks together, and its stratified bootstrap interval.

    Args:
        strata: for each task its scores, one a seed.
    """
    curve = estimate_curve([np.asarray(scores, float)[:, None] for scores in strata], statistic)
    low, high = (None if end is None else float(end[0]) for end in (curve.low, curve.high))
    return Estimate(float(curve.value[0]), low, high, curve.count)


def estimate_curve(
    strata: Sequence[Array], statistic: Callable[..., Any] = interquartile_mean, resamples: int = RESAMPLES
) -> Estimate[Array]:
    """``estimate`` at every point of curves: strata of shape (seeds, points)."""
    together = np.concatenate(strata)
    value = np.asarray(statistic(together, axis=0))
    if any(len(scores) < 2 for scores in strata):
        return Estimate(value, None, None, len(together))
    interval = stats.bootstrap(
        tuple(strata),
        lambda *resampled, axis: statistic(np.concatenate(resampled, axis=axis), axis=axis),
        axis=0,
        vectorized=True,
        method="percentile",
        confidence_level=CONFIDENCE,
        n_resamples=resamples,
        batch=100,  # bounds memory: 100 resamples x runs x points
        random_state=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(value, np.asarray(interval.low), np.asarray(interval.high), len(together))


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences (same task, same seed)."""

    estimate: Estimate[float]
    """Pairs resampled within each task."""
    deviation: float | None
    """Sample standard deviation of the pairs; None for one pair."""
    smallest_effect: float | None
    """The mean difference that so many pairs would have shown: by a two-sided t-test at 5 %, with a power of
    80 %. None for one pair."""


def mean_difference(strata: Sequence[Array]) -> Difference:
    """Mean of the paired differences of each task."""
    pairs = np.concatenate(strata)
    count = len(pairs)
    result = estimate(strata, np.mean)
    if count < 2:
        return Difference(result, None, None)
    deviation = float(pairs.std(ddof=1))
    quantiles = stats.t.ppf([(1 + CONFIDENCE) / 2, POWER], count - 1)
    return Difference(result, deviation, float(quantiles.sum() * deviation / np.sqrt(count)))
