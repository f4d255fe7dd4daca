"""Runs brought onto common env steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gipo_vla.reporting.curves import aggregate_metric, common_points
from gipo_vla.reporting.grouping import Configuration
from gipo_vla.reporting.runs import Run


def run(name: str, points: Sequence[tuple[int, float | None]]) -> Run:
    rows = [
        {"iteration": index, "env_steps": steps, "value": value}
        for index, (steps, value) in enumerate(points, 1)
    ]
    return Run(name, {}, rows)


def test_equal_steps_are_kept_as_they_are() -> None:
    steps = np.array([1.0, 5.0, 6.0])
    assert common_points([steps, steps.copy()]) is steps


def test_other_steps_are_compared_within_the_span_that_all_have() -> None:
    grid = common_points([np.array([0.0, 10.0, 30.0]), np.array([5.0, 20.0])])
    np.testing.assert_allclose(grid, [5.0, 12.5, 20.0])
    assert len(common_points([np.array([0.0, 1.0]), np.array([2.0, 3.0])])) == 0


def test_values_are_interpolated_and_unknown_ones_skipped() -> None:
    first = run("a", [(0, 0.0), (10, None), (20, 2.0)])
    second = run("b", [(0, 4.0), (20, 4.0)])
    curve = aggregate_metric(Configuration({}, "all", (first, second)), "value")
    assert curve is not None and curve.estimate.count == 2
    np.testing.assert_allclose(curve.env_steps, [0, 20])
    np.testing.assert_allclose(curve.estimate.value, [2.0, 3.0])


def test_a_metric_that_a_run_lacks_gives_no_curve() -> None:
    known, unknown = run("a", [(0, 0.0), (1, 1.0)]), run("b", [(0, None), (1, None)])
    assert aggregate_metric(Configuration({}, "all", (known, unknown)), "value") is None
