"""docs/results/staleness.md quotes the small grid: what it says must be what the data beside it gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from gipo_vla.reporting.comparison import Comparison, compare
from gipo_vla.reporting.grouping import Configuration
from gipo_vla.reporting.runs import read_runs
from gipo_vla.reporting.statistics import Difference, Estimate, estimate
from gipo_vla.reporting.summary import Score

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGE = (RESULTS / "staleness.md").read_text()
OBJECTIVES = {"GIPO": "gipo", "PPO": "ppo", "SAPO": "sapo", "No-Clip": "no_clip"}
CAPACITIES = {"stale": 64_000, "fresh": 3_200}


@pytest.fixture(scope="module")
def grid() -> Comparison:
    runs, _ = read_runs([RESULTS / "data" / "paper_metaworld_small"])
    return compare(runs)


def arm(grid: Comparison, objective: str, regime: str) -> Configuration:
    wanted = (OBJECTIVES[objective], CAPACITIES[regime])
    (found,) = [
        one
        for one in grid.configurations
        if (one.runs[0].config["objective.name"], one.runs[0].config["replay.capacity"]) == wanted
    ]
    return found


def cells(first: str, table: int = 0) -> list[str]:
    """Of the row that begins so: in the first table that has one, or in a later one."""
    bare = [line.replace("*", "") for line in PAGE.splitlines()]
    rows = [line for line in bare if line.startswith(f"| {first}") and "[" in line]
    return [cell.strip() for cell in rows[table].split("|")[2:-1]]


def written(result: Estimate | None, sign: str = "") -> str:
    assert result is not None
    assert result.low is not None
    assert result.high is not None
    text = f"{result.value:{sign}.2f} [{result.low:.2f}, {result.high:.2f}]"
    return text.replace("-0.00", "0.00")


def test_every_run_of_the_plan_counts(grid: Comparison) -> None:
    assert len(grid.runs) == 4 * 2 * 3 * 3
    assert not grid.left_out
    assert grid.source == "evaluation"
    assert {len(one.runs) for one in grid.configurations} == {9}


@pytest.mark.parametrize("regime", CAPACITIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_success_of_an_arm(grid: Comparison, objective: str, regime: str) -> None:
    configuration = arm(grid, objective, regime)
    row = cells(f"{objective}, {regime} ")
    assert row[0] == written(grid.estimate(configuration))
    assert row[2] == written(grid.estimate(configuration, "over_training"))


@pytest.mark.parametrize(
    "name", ["GIPO, stale", "PPO, stale", "SAPO, stale", "No-Clip, stale", "SAPO, fresh"]
)
def test_success_per_task(grid: Comparison, name: str) -> None:
    objective, _, regime = name.partition(", ")
    strata = grid.strata(arm(grid, objective, regime))
    assert grid.tasks == ("button-press-v3", "faucet-open-v3", "window-open-v3")
    assert cells(f"{objective}, {regime} ", table=1) == [
        written(estimate([strata[task]])) for task in grid.tasks
    ]


@pytest.mark.parametrize("objective", ["GIPO", "PPO", "No-Clip"])
def test_all_of_these_end_at_1_on_fresh_data(grid: Comparison, objective: str) -> None:
    strata = grid.strata(arm(grid, objective, "fresh"))
    assert all((scores == 1).all() for scores in strata.values())


def difference(grid: Comparison, other: str, regime: str, score: Score) -> Difference:
    gipo = {one: arm(grid, "GIPO", one) for one in CAPACITIES}
    them = {one: arm(grid, other, one) for one in CAPACITIES}
    if regime in CAPACITIES:
        found = grid.difference([gipo[regime]], [them[regime]], score)
    else:
        found = grid.difference([gipo["stale"], them["fresh"]], [them["stale"], gipo["fresh"]], score)
    assert found is not None
    assert found.estimate.count == 9
    return found


@pytest.mark.parametrize("regime", [*CAPACITIES, "stale minus fresh"])
@pytest.mark.parametrize("other", ["PPO", "SAPO", "No-Clip"])
def test_differences_from_gipo(grid: Comparison, other: str, regime: str) -> None:
    row = cells(f"GIPO - {other}, {regime} {'(primary) ' * ((other, regime) == ('PPO', 'stale'))}|")
    scores: tuple[Score, Score] = ("success_once", "over_training")
    for score, (mean, deviation, smallest) in zip(scores, (row[:3], row[3:]), strict=True):
        found = difference(grid, other, regime, score)
        assert found.deviation is not None
        if found.deviation == 0:  # all runs of both arms end at the same success
            assert (mean, deviation) == ("0", "0")
            assert found.estimate.value == 0
            continue
        assert mean == written(found.estimate, sign="+")
        assert deviation == f"{found.deviation:.2f}"
        assert smallest == f"{found.smallest_effect:.2f}"


@pytest.mark.parametrize("name", ["PPO 3e-3, stale", "SAPO 3e-3, stale", "PPO 3e-3, fresh"])
def test_arms_with_a_higher_learning_rate(grid: Comparison, name: str) -> None:
    runs, _ = read_runs([RESULTS / "data" / "paper_metaworld_small_higher_rates"])
    objective, _, regime = name.replace(" 3e-3", "").partition(", ")
    configuration = arm(compare(runs), objective, regime)
    assert {run.config["learner.policy_learning_rate"] for run in configuration.runs} == {0.003}
    lead = grid.difference([arm(grid, "GIPO", regime)], [configuration], "over_training")
    assert lead is not None
    assert lead.estimate.count == 9
    row = cells(f"{name} ")
    assert row[0] == written(grid.estimate(configuration))
    assert row[1] == written(grid.estimate(configuration, "over_training"))
    assert row[5].startswith(written(lead.estimate, sign="+"))
