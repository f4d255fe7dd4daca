"""One run in numbers."""

from __future__ import annotations

from typing import Any

import pytest

from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.summary import (
    mean_over,
    regime,
    settled_mean,
    success_over_training,
    task_scores,
)


def run(rows: list[dict[str, Any]], **fields: Any) -> Run:
    return Run("run", {}, rows, **fields)


def test_settled_means_are_over_the_second_half_and_greatest_values_stay_greatest() -> None:
    rows = [
        {"iteration": index, "env_steps": index, "lag": float(index), "lag_max": lag}
        for index, lag in zip(range(1, 5), (99, 1, 7, 3))
    ]
    assert settled_mean(run(rows), "lag") == 3.5
    assert settled_mean(run(rows), "lag_max") == 7
    assert settled_mean(run(rows), "absent") is None
    assert mean_over([run(rows), run([*rows[:3], rows[3] | {"lag": 8.0}])], "lag") == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("lag", "spread", "expected"),
    [
        (20.0, 0.5, "stale"),
        (19.9, 3.0, "not stale"),
        (40.0, 0.49, "not stale"),
        (None, 0.5, "unknown"),
    ],
)
def test_a_regime_is_stale_when_data_are_old_and_the_policy_has_moved(
    lag: float | None, spread: float | None, expected: str
) -> None:
    assert regime(lag, spread) == expected


def test_success_over_training_weighs_by_env_steps() -> None:
    rows: list[dict[str, Any]] = [
        {"iteration": 1, "env_steps": 0, "success_once_recent": None},
        {"iteration": 2, "env_steps": 100, "success_once_recent": 0.0},
        {"iteration": 3, "env_steps": 200, "success_once_recent": 1.0},
        {"iteration": 4, "env_steps": 500, "success_once_recent": 1.0},
    ]
    assert success_over_training(run(rows)) == pytest.approx((0.5 * 100 + 300) / 400)
    assert success_over_training(run(rows[:1])) is None


def test_scores_come_from_the_evaluation_or_from_the_last_training_episodes() -> None:
    rows: list[dict[str, Any]] = [
        {"iteration": 1, "env_steps": 1, "success_once_recent": 0.25, "task/a/success_once_recent": 0.25},
        {"iteration": 2, "env_steps": 2, "success_once_recent": None, "task/a/success_once_recent": None},
    ]
    evaluation = {"tasks": {"a": {"success_once": 0.5, "success_at_end": 0.4}}}
    one = run(rows, evaluation=evaluation)
    assert task_scores(one, "evaluation") == {"a": 0.5}
    assert task_scores(one, "evaluation", "success_at_end") == {"a": 0.4}
    assert task_scores(one, "training") == {"a": 0.25}
    assert task_scores(one, "training", "success_at_end") == {}
    assert task_scores(one, "training", "over_training") == {"a": 0.25}
