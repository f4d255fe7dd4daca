"""The learning rate's course, by hand."""

from __future__ import annotations

import math

import pytest

from gipo_vla.learner.schedule import entropy_factor, learning_rate_factor


@pytest.mark.parametrize(
    "progress, expected",
    [
        (0, 0.0),
        (5, 0.5),
        (9.5, 0.95),
        (10, 1.0),
        (32.5, 0.5 + 0.5 * math.cos(math.pi / 4)),
        (55, 0.5),
        (100, 0),
        (101, 0),
    ],
)
def test_warm_up_then_half_a_cosine(progress: float, expected: float) -> None:
    assert learning_rate_factor(progress, 10, 100) == pytest.approx(expected, abs=1e-12)


def test_ends_at_the_final_fraction() -> None:
    assert learning_rate_factor(100, 0, 100, final=0.2) == pytest.approx(0.2)
    assert learning_rate_factor(50, 0, 100, final=0.2) == pytest.approx(0.6)


def test_constant_stays_at_one_after_the_warm_up() -> None:
    assert [learning_rate_factor(p, 4, 10, "constant") for p in (0, 1, 4, 10, 1000)] == [0, 0.25, 1, 1, 1]


@pytest.mark.parametrize("warmup, total", [(0, 1), (10, 10), (20, 10), (0, 0)])
def test_odd_lengths_stay_within_bounds(warmup: int, total: int) -> None:
    factors = [learning_rate_factor(p / 2, warmup, total) for p in range(80)]
    assert all(0 <= factor <= 1 for factor in factors)


def test_the_entropy_bonus_falls_in_a_straight_line() -> None:
    assert [entropy_factor(p, 10, 0.0) for p in (0, 5, 10, 20)] == [1, 0.5, 0, 0]
    assert entropy_factor(5, 10, 0.2) == pytest.approx(0.6)
    assert entropy_factor(7, 10, 1.0) == 1
