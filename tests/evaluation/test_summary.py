"""Rates and intervals of evaluation episodes, by hand."""

from __future__ import annotations

import pytest

from gipo_envs import EnvironmentSettings, make_spec
from gipo_vla.evaluation import summary
from gipo_vla.evaluation.episodes import EpisodeResult
from gipo_vla.rollout.episodes import EpisodePlan

SPEC = make_spec(EnvironmentSettings("point_reach", ("reach", "push")))


def result(task: int, number: int, once: bool, at_end: bool, value: float) -> EpisodeResult:
    plan = EpisodePlan(task, 1_000_000 + number, number, 40)
    return EpisodeResult(plan, value, 40, once, at_end)


REACH = [result(0, i, once=i < 3, at_end=i < 1, value=float(i)) for i in range(4)]
PUSH = [result(1, i, once=False, at_end=False, value=-1.0) for i in range(4)]


def test_rates_of_a_hand_made_set() -> None:
    rates = summary.rates(REACH)
    assert rates["episodes"] == 4
    assert rates["success_once"] == 0.75
    assert rates["success_at_end"] == 0.25
    assert rates["mean_return"] == 1.5
    # Wilson's interval for 3 of 4 with z = 1.96: (p + z^2/2n -+ z sqrt(p q / n + z^2/4n^2)) / (1 + z^2/n).
    assert rates["success_once_interval_95"] == pytest.approx([0.3006, 0.9544], abs=1e-4)


def test_interval_of_all_successes_is_not_a_point() -> None:
    low, high = summary.rates([result(0, i, True, True, 1.0) for i in range(50)])["success_once_interval_95"]
    assert low == pytest.approx(0.9287, abs=1e-4)
    assert high == 1.0


def test_evaluation_json_has_both_modes_and_every_task() -> None:
    evaluation = summary.evaluation_json(SPEC, "sampled", {"greedy": REACH, "sampled": REACH + PUSH})
    assert evaluation["mode"] == "sampled"
    assert evaluation["episodes"] == 8
    assert evaluation["success_once"] == 0.375
    assert {name: row["success_once"] for name, row in evaluation["tasks"].items()} == {
        "reach": 0.75,
        "push": 0.0,
    }
    assert evaluation["greedy"]["success_once"] == 0.75
    assert list(evaluation["greedy"]["tasks"]) == ["reach"]


def test_table_shows_every_task_and_the_total() -> None:
    evaluation = summary.evaluation_json(SPEC, "greedy", {"greedy": REACH + PUSH, "sampled": REACH + PUSH})
    rows = summary.table(evaluation).columns[0]._cells
    assert list(rows) == ["reach", "push", "all", "reach", "push", "all"]
