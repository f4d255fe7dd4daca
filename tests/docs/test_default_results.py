"""What the pages say of the default experiment is what the data kept beside them gives."""

from __future__ import annotations

from collections import defaultdict

import pytest

from gipo_vla.reporting.archive import read_folder
from tests.docs.pages import ROOT

RESULTS = ROOT / "docs" / "results"


def scores(score: str) -> dict[str, list[float]]:
    """Of sampled actions, by task, in the order of seeds."""
    found: dict[str, list[float]] = defaultdict(list)
    runs = read_folder(RESULTS / "data" / "metaworld_default")
    for run in sorted(runs, key=lambda run: run["config"]["seed"]):
        found[str(run["config"]["env"]["task"])].append(run["evaluation"]["sampled"][score])
    return found


@pytest.mark.parametrize("task", ["reach-v3", "button-press-v3", "drawer-open-v3", "door-lock-v3"])
def test_success_at_the_end_of_sampled_actions(task: str) -> None:
    page = (RESULTS / "metaworld.md").read_text()
    [row] = [line for line in page.splitlines() if line.startswith(f"| {task} |")]
    own = scores("success_at_end")[task]
    told = [cell.strip() for cell in row.split("|")][2:4]
    if len(own) == 1:
        assert told == [f"{own[0]:.2f} (seed 0 alone)", ""]
    else:
        assert told == [", ".join(f"{one:.2f}" for one in own), f"**{sum(own) / len(own):.2f}**"]


def test_the_page_of_the_default_has_the_same_seeds() -> None:
    page = (RESULTS / "metaworld_button_press" / "README.md").read_text()
    for seed, own in enumerate(scores("success_at_end")["button-press-v3"]):
        [row] = [line for line in page.splitlines() if line.startswith(f"| {seed} |")]
        assert row.split("|")[-2].strip() == f"{own:.2f}"


def test_the_search_page_has_the_runs_of_its_last_round() -> None:
    page = (RESULTS / "metaworld_search.md").read_text().splitlines()
    tasks = ("reach-wall-v3", "door-unlock-v3", "faucet-close-v3", "door-open-v3")
    found: dict[float, dict[str, tuple[float, float]]] = defaultdict(dict)
    for run in read_folder(RESULTS / "data" / "metaworld_search_kl"):
        config, evaluation = run["config"], run["evaluation"]
        own = found[config["regularizers"]["kl_behaviour_coefficient"]]
        own[str(config["env"]["task"])] = (evaluation["success_at_end"], evaluation["mean_return"])
    largest = {task: max(own[task][1] for own in found.values()) for task in tasks}
    assert sorted(found) == [0, 0.01, 0.03, 0.1]
    for coefficient, own in found.items():
        mean = sum(own[task][0] for task in tasks) / len(tasks)
        share = sum(own[task][1] / largest[task] for task in tasks) / len(tasks)
        cells = [f"{own[task][0]:.2f} ({own[task][1]:.0f})" for task in tasks]
        bold = "**" if coefficient == 0.1 else ""
        told = f"| {coefficient:g} | {' | '.join(cells)} | {mean:.3f} | {bold}{share:.2f}{bold} |"
        assert told in page, told
