"""Which runs count, and by which score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from gipo_envs.errors import UserError
from gipo_vla.reporting import results, summary
from gipo_vla.reporting.comparison import Comparison, compare
from gipo_vla.reporting.runs import read_runs

Maker = Callable[..., Path]


def read(folder: Path) -> Comparison:
    return compare(*read_runs([folder]))


def test_runs_under_way_do_not_count_beside_complete_ones(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, iterations=5)
    comparison = read(tmp_path)
    assert [run.name for run in comparison.runs] == ["a"]
    assert [run.name for run in comparison.left_out] == ["b"]
    assert comparison.remarks == ("1 of 2 runs have not ended and do not count",)


def test_runs_under_way_count_where_none_is_complete(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", iterations=5)
    comparison = read(tmp_path)
    assert comparison.single and "no run has ended" in comparison.remarks[0]


def test_a_copy_of_a_run_is_no_second_seed(tmp_path: Path, make_run: Maker) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, seed=3, changes={"run_dir": name})
    comparison = read(tmp_path)
    assert len(comparison.runs) == 1 and comparison.remarks == ("b is left out: a copy of a",)


def test_a_seed_that_was_run_twice_with_other_outcomes_is_remarked_on(
    tmp_path: Path, make_run: Maker
) -> None:
    make_run(tmp_path / "a", seed=3, success=0.5)
    make_run(tmp_path / "b", seed=3, success=0.6)
    assert "1 runs repeat a seed" in read(tmp_path).remarks[0]


def test_all_runs_are_scored_the_same_way(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", seed=0, success=0.5)
    assert read(tmp_path).source == "evaluation"
    make_run(tmp_path / "b", seed=1, success=0.7, evaluated=False)
    comparison = read(tmp_path)
    assert comparison.source == "training" and "only 1 of 2 runs" in comparison.remarks[0]
    np.testing.assert_allclose(comparison.strata(comparison.configurations[0])["reach"], [0.5, 0.7])


def test_score_is_the_interquartile_mean_over_tasks_and_seeds(tmp_path: Path, make_run: Maker) -> None:
    for task, scores in {"reach": (0.1, 0.3), "push": (0.5, 0.9)}.items():
        for seed, success in enumerate(scores):
            make_run(tmp_path / f"{task}{seed}", task=task, seed=seed, success=success)
    comparison = read(tmp_path)
    result = comparison.estimate(comparison.configurations[0])
    assert result is not None and result.value == pytest.approx(0.4) and result.count == 4
    assert result.low is not None
    per_task = results.success_per_task(comparison)
    assert [row[:4] for row in per_task.rows] == [
        ["push", "gipo", 2, pytest.approx(0.7)],
        ["reach", "gipo", 2, pytest.approx(0.2)],
    ]


def test_each_task_of_a_run_on_several_is_a_score(tmp_path: Path, make_run: Maker) -> None:
    for seed in (0, 1):
        make_run(tmp_path / str(seed), task=["push", "lift"], seed=seed)
    comparison = read(tmp_path)
    strata = comparison.strata(comparison.configurations[0])
    assert {task: len(scores) for task, scores in strata.items()} == {"lift": 2, "push": 2}


def test_paired_difference_is_over_shared_tasks_and_seeds(tmp_path: Path, make_run: Maker) -> None:
    for seed, (gipo, ppo) in enumerate([(0.9, 0.5), (0.7, 0.5)]):
        make_run(tmp_path / f"gipo{seed}", "gipo", seed=seed, success=gipo)
        make_run(tmp_path / f"ppo{seed}", "ppo", seed=seed, success=ppo)
    make_run(tmp_path / "ppo9", "ppo", seed=9, success=0.0)
    comparison = read(tmp_path)
    first, second = comparison.configurations
    assert "configurations differ in the tasks or seeds" in comparison.remarks[0]
    result = comparison.difference([first], [second])
    assert result is not None and result.estimate.count == 2
    assert (result.estimate.value, result.estimate.low, result.estimate.high) == pytest.approx(
        (0.3, 0.2, 0.4)
    )
    assert result.deviation == pytest.approx(0.2 / 2**0.5)


def test_differences_are_of_success_at_the_end_and_over_training(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "gipo", "gipo", success=1.0)
    make_run(tmp_path / "ppo", "ppo", success=1.0)
    rows = [json.loads(line) for line in (tmp_path / "ppo/metrics.jsonl").read_text().splitlines()]
    for row in rows:  # a line from 0 at the first point to 1, where gipo has its own curve
        row["success_once_recent"] = (row["iteration"] - 1) / 19
    (tmp_path / "ppo/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = read(tmp_path)
    table = results.differences(comparison)
    assert table is not None
    end, over = (dict(zip(table.columns, row)) for row in table.rows)
    assert (end["score"], end["mean_difference"]) == ("success_once", 0)
    gipo = summary.success_over_training(comparison.configurations[0].runs[0])
    assert gipo is not None and over["score"] == "over_training"
    assert over["mean_difference"] == pytest.approx(gipo - 0.5)


def test_what_the_capacity_does_to_a_difference(tmp_path: Path, make_run: Maker) -> None:
    """Each objective has its own learning rate at each capacity, which goes with it."""
    scores = {("gipo", 20000): 0.9, ("ppo", 20000): 0.4, ("gipo", 1000): 0.8, ("ppo", 1000): 0.7}
    for (objective, capacity), success in scores.items():
        for seed in (0, 1):
            changes = {"replay.capacity": capacity, "env.reward_scale": success}
            own = success + (0.1 * seed if (objective, capacity) == ("gipo", 20000) else 0.0)
            make_run(
                tmp_path / f"{objective}{capacity}-{seed}", objective, seed=seed, success=own, changes=changes
            )
    comparison = read(tmp_path)
    assert comparison.factors == ("objective.name", "replay.capacity")
    assert comparison.remarks == (
        "env.reward_scale was set with the rest: 0.8, but 0.9 for gipo, capacity 20,000; 0.7 for ppo, "
        "capacity 1,000; 0.4 for ppo, capacity 20,000",
    )
    table = results.capacity_differences(comparison)
    assert table is not None and [row[0] for row in table.rows] == ["success_once", "over_training"]
    row = dict(zip(table.columns, table.rows[0]))
    assert (row["objective"], row["at_capacity"], row["minus_at_capacity"]) == ("gipo", 20000, 1000)
    # (.9 - .4) - (.8 - .7) for one seed, .1 more for the other.
    assert (row["pairs"], row["mean_difference"]) == (2, pytest.approx(0.45))
    make_run(tmp_path / "more", "ppo", seed=0, changes={"replay.capacity": 1000, "env.reward_scale": 9.0})
    assert results.capacity_differences(read(tmp_path)) is None  # which of ppo's two at 1000?


def test_sigma_by_capacity_has_a_row_for_objectives_without_sigma(tmp_path: Path, make_run: Maker) -> None:
    for capacity in (1000, 20000):
        for sigma in (0.2, 1.0):
            changes = {"replay.capacity": capacity, "objective.sigma": sigma}
            make_run(tmp_path / f"gipo{capacity}-{sigma}", changes=changes, lag=capacity / 1000)
        make_run(tmp_path / f"ppo{capacity}", "ppo", changes={"replay.capacity": capacity}, lag=0.0)
    comparison = read(tmp_path)
    rows, columns, cells = results.sigma_by_capacity(comparison)
    assert rows == ["gipo, sigma 0.2", "gipo, sigma 1", "ppo"]
    assert columns == [1000, 20000] and len(cells) == 6
    runs = results.runs(comparison)
    column = runs.columns.index("replay.capacity")
    assert [row[column] for row in runs.rows] == [1000, 20000] * 3
    table = results.sigma_capacity(comparison)
    assert [row[1:3] for row in table.rows] == [
        [0.2, 1000],
        [0.2, 20000],
        [1.0, 1000],
        [1.0, 20000],
        [None, 1000],
        [None, 20000],
    ]
    lags = [row[table.columns.index("lag_iterations")] for row in table.rows]
    assert lags == pytest.approx([1, 20, 1, 20, 0, 0])


def test_runs_are_compared_by_the_score_that_was_asked_for(tmp_path: Path, make_run: Maker) -> None:
    for seed, (gipo, ppo) in enumerate([(0.9, 0.5), (0.7, 0.5)]):
        make_run(tmp_path / f"gipo{seed}", "gipo", seed=seed, success=gipo)
        make_run(tmp_path / f"ppo{seed}", "ppo", seed=seed, success=ppo)
    path = tmp_path / "gipo0" / "evaluation.json"
    values = json.loads(path.read_text())
    values["sampled"]["tasks"]["reach"] |= {"mean_return": 50.0, "success_at_end": 0.1}
    path.write_text(json.dumps(values))
    found = read_runs([tmp_path])
    for score, expected in {
        "success_once": (0.8, 0.3),
        "success_at_end": (0.72, 0.27),
        "mean_return": (80.0, 30.0),
        "sampled.success_once": (0.8, 0.3),  # per task, which the fixture has alike in both modes
        "sampled.success_at_end": (0.365, -0.085),
        "sampled.mean_return": (60.0, 10.0),
    }.items():
        comparison = compare(*found, score=cast(summary.HeldOutScore, score))
        table = results.configurations(comparison)
        column = table.columns.index("success_iqm" if score == "success_once" else f"{score}_iqm")
        assert table.rows[0][column] == pytest.approx(expected[0]), score
        pairs = results.differences(comparison)
        assert pairs is not None
        assert pairs.rows[0][0] == score and pairs.rows[0][4] == pytest.approx(expected[1])
    table = results.configurations(compare(*found))
    last = dict(zip(table.columns, table.rows[0]))
    assert last["sampled_mean_return_iqm"] == pytest.approx(60)
    held_out = results.held_out(compare(*found))
    assert held_out is not None and len(held_out.rows) == 2 * 6


def test_a_score_that_not_every_run_has_is_refused(tmp_path: Path, make_run: Maker) -> None:
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, evaluated=False)
    with pytest.raises(UserError, match=r"score=mean_return is of the evaluation at the end"):
        compare(*read_runs([tmp_path]), score="mean_return")
