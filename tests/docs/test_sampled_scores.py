"""What docs/results says of sampled scores and of t-intervals is what the data kept beside it gives."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
from scipy import stats

from gipo_vla.reporting.archive import Record, read_folder
from gipo_vla.reporting.statistics import mean_difference
from tests.docs.pages import ROOT

RESULTS = ROOT / "docs" / "results"
STALENESS = (RESULTS / "staleness.md").read_text()
SPARSE = " ".join((RESULTS / "metaworld_sparse" / "README.md").read_text().split())
STALE, FRESH = 64_000, 3_200
Pair = tuple[str, int]
"""Task and seed."""
Scores = Mapping[Pair, float]

ARMS = {
    "GIPO": ("paper_metaworld_small", "gipo"),
    "PPO": ("paper_metaworld_small", "ppo"),
    "PPO 3e-3": ("paper_metaworld_small_higher_rates", "ppo"),
    "SAPO": ("paper_metaworld_small", "sapo"),
}
"""Rows of the page's table: the data, and the objective's name in it."""


@cache
def arm(name: str, capacity: int) -> dict[Pair, Record]:
    data, objective = ARMS[name]
    runs = {}
    for run in read_folder(RESULTS / "data" / data):
        config = run["config"]
        if config["objective"]["name"] == objective and config["replay"]["capacity"] == capacity:
            runs[str(config["env"]["task"]), config["seed"]] = run
    assert len(runs) == 9
    return runs


def sampled(name: str, score: str, capacity: int = STALE) -> Scores:
    return {pair: run["evaluation"]["sampled"][score] for pair, run in arm(name, capacity).items()}


def differences(first: Scores, second: Scores) -> list[np.ndarray]:
    """Paired differences of each task."""
    assert first.keys() == second.keys()
    tasks = sorted({task for task, _ in first})
    return [
        np.array([first[pair] - second[pair] for pair in sorted(first) if pair[0] == task]) for task in tasks
    ]


def t_interval(strata: list[np.ndarray]) -> tuple[float, float, float]:
    """Mean and 95 % interval of a paired t with the task as block."""
    every = np.concatenate(strata)
    freedom = len(every) - len(strata)
    residuals = np.concatenate([one - one.mean() for one in strata])
    error = np.sqrt((residuals**2).sum() / freedom / len(every))
    half = stats.t.ppf(0.975, freedom) * error
    return every.mean(), every.mean() - half, every.mean() + half


def permutation_p(strata: list[np.ndarray]) -> float:
    """Two-sided p-value of the mean when the sign of every pair may be flipped."""
    every = np.concatenate(strata)
    flipped = np.array(list(itertools.product((1, -1), repeat=len(every)))) @ every
    return float(np.mean(np.abs(flipped) >= abs(every.sum()) - 1e-9))


def row(name: str) -> list[str]:
    (found,) = [
        line
        for line in STALENESS.split("### The same evaluations by other scores")[1].splitlines()
        if line.startswith(f"| {name} |")
    ]
    return [cell.strip() for cell in found.split("|")[2:-1]]


def written(values: tuple[float, float, float]) -> str:
    mean, low, high = values
    return f"{mean:+.0f} [{low:.0f}, {high:.0f}]"


@pytest.mark.parametrize("name", ARMS)
def test_rows_of_sampled_scores(name: str) -> None:
    runs = arm(name, STALE).values()
    cells = row(name)
    assert cells[0] == f"{np.mean(list(sampled(name, 'mean_return').values())):.0f}"
    assert cells[2] == f"{np.mean(list(sampled(name, 'success_at_end').values())):.2f}"
    assert cells[3] == f"{np.mean([run['evaluation']['success_at_end'] for run in runs]):.2f}"
    entropy = float(np.mean([run["metrics"]["policy/entropy"][-1] for run in runs]))
    assert float(cells[4]) == pytest.approx(entropy, abs=0.051)
    if name == "GIPO":
        assert cells[1] == ""
    else:
        own = differences(sampled("GIPO", "mean_return"), sampled(name, "mean_return"))
        assert cells[1] == written(t_interval(own))


@pytest.mark.parametrize(("name", "bootstrap"), [("PPO", (343, 393)), ("PPO 3e-3", (232, 272))])
def test_gipo_is_ahead_in_every_pair(name: str, bootstrap: tuple[int, int]) -> None:
    strata = differences(sampled("GIPO", "mean_return"), sampled(name, "mean_return"))
    assert (np.concatenate(strata) > 0).all()
    assert f"{permutation_p(strata):.3f}" == "0.004"
    estimate = mean_difference(strata).estimate
    assert (estimate.low, estimate.high) == pytest.approx(bootstrap, abs=3)
    assert str(list(bootstrap)) in STALENESS


def test_fresh_data_does_not_tell_them_apart() -> None:
    strata = differences(sampled("GIPO", "mean_return", FRESH), sampled("PPO", "mean_return", FRESH))
    assert f"the same difference is {written(t_interval(strata))}" in " ".join(STALENESS.split())


def test_what_the_front_of_the_page_says() -> None:
    gipo, ppo = (np.mean(list(sampled(name, "mean_return").values())) for name in ("GIPO", "PPO"))
    assert round(gipo / ppo, 1) == 1.3
    assert "GIPO's return is higher by a third" in STALENESS


def test_no_difference_for_gipo_could_have_shown_by_greedy_success() -> None:
    runs = arm("PPO", STALE).values()
    assert {run["evaluation"]["success_once"] for run in runs} == {1.0}


def sparse(credit: str, normalize: str, base: str | None = None) -> Scores:
    scores = {}
    for run in read_folder(RESULTS / "data" / "metaworld_sparse"):
        own = run["config"]["credit"]
        if (own["name"], own["normalize"]) == (credit, normalize) and base in (None, own.get("base")):
            evaluation = run["evaluation"]
            assert evaluation["mode"] == "sampled"
            scores[str(run["config"]["env"]["task"]), run["config"]["seed"]] = evaluation["success_once"]
    assert len(scores) == 3
    return scores


def test_shares_of_scale_and_credit() -> None:
    group, normalised = sparse("group", "none"), sparse("group", "running")
    gain = sparse("information_gain", "running", "group")

    def half_width(first: Scores, second: Scores) -> tuple[str, str]:
        mean, low, high = t_interval(differences(first, second))
        return f"{mean:.2f}", f"{(high - low) / 2:.2f}"

    assert half_width(normalised, group) == ("0.12", "0.12")
    assert half_width(gain, normalised) == ("0.16", "0.22")
    assert half_width(gain, group) == ("0.28", "0.09")
    assert "gives 0.12 +- 0.12" in SPARSE
    assert "is 0.16 +- 0.22" in SPARSE
    assert "is 0.09 for the 0.28 of `information_gain` and 0.22 for its 0.16" in SPARSE
