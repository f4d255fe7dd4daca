"""What the page on LIBERO says is what the data kept beside it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gipo_vla.reporting.archive import read_folder
from tests.docs.pages import ROOT

RESULTS = ROOT / "docs" / "results"
KEPT = RESULTS / "libero_mlp"
TASKS = ("bowl", "stove")
SEEDS = (0, 1, 2)
Json = dict[str, Any]


def read(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def runs(task: str) -> list[Json]:
    """By seed."""
    return sorted(read_folder(RESULTS / "data" / f"libero_{task}"), key=lambda run: run["config"]["seed"])


def with_interval(found: Json) -> str:
    low, high = found["success_once_interval_95"]
    return f"{found['success_once']:.2f} ({low:.2f} .. {high:.2f})"


def score_row(name: str, evaluation: Json, start: Json) -> str:
    risen = evaluation["success_once"] - start["success_once"]
    told = "" if evaluation is start else f"**{risen:+.2f}**"
    return f"| {name} | {with_interval(evaluation)} | {told} | {with_interval(evaluation['greedy'])} |"


def second_half(run: Json, key: str) -> float:
    """Mean of a metric over the second half of training."""
    values = run["metrics"][key]
    half = values[len(values) // 2 :]
    return float(sum(half) / len(half))


def by_quarter(run: Json) -> list[str]:
    """Success over the training episodes that ended in each quarter of the env steps."""
    metrics = run["metrics"]
    steps, episodes, rates = (metrics[key] for key in ("env_steps", "episodes", "success_once"))
    cells = []
    for quarter in range(4):
        chosen = [index for index, taken in enumerate(steps) if 4 * (taken - 1) // steps[-1] == quarter]
        ended = sum(episodes[index] for index in chosen)
        succeeded = sum(rates[index] * episodes[index] for index in chosen if episodes[index])
        cells.append(f"{succeeded / ended:.2f} of {ended}")
    return cells


def training_row(name: str, run: Json) -> str:
    keys = ("staleness/lag_iterations_mean", "staleness/p95_abs_log_ratio", "policy/entropy")
    lag, ratio, entropy = (second_half(run, key) for key in keys)
    return f"| {' | '.join([name, *by_quarter(run), f'{lag:.1f}', f'{ratio:.2f}', f'{entropy:.2f}'])} |"


def published_row(name: str, found: Json, mode: str) -> str:
    own = found if mode == "sampled" else found["greedy"]
    start = found["versus"]["evaluation"]
    start = start if mode == "sampled" else start["greedy"]
    paired = found["versus"]["paired"][mode]
    low, high = paired["difference_interval_95"]
    cells = [
        f"{name}, {mode}",
        with_interval(start),
        with_interval(own),
        f"{paired['difference']:+.2f} ({low:+.2f} .. {high:+.2f})",
        f"{paired['only_first']} : {paired['only_second']}",
        f"{paired['p_value']:.1g}",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.fixture(scope="module")
def page() -> list[str]:
    return (RESULTS / "libero_mlp.md").read_text().splitlines()


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_a_task(page: list[str], task: str) -> None:
    start = read(KEPT / f"start_{task}.json")
    assert score_row(f"{task}, start", start, start) in page
    for seed, run in zip(SEEDS, runs(task), strict=True):
        assert run["config"]["seed"] == seed
        assert score_row(f"{task}, seed {seed}", run["evaluation"], start) in page
        assert training_row(f"{task}, seed {seed}", run) in page
        published = read(KEPT / f"published_{task}_seed{seed}.json")
        for mode in ("sampled", "greedy"):
            assert published_row(f"{task}, seed {seed}", published, mode) in page


def test_what_the_readmes_quote() -> None:
    readme, index = (
        " ".join(path.read_text().split()) for path in (ROOT / "README.md", RESULTS / "README.md")
    )
    for task in TASKS:
        start = f"{read(KEPT / f'start_{task}.json')['success_once']:.2f}"
        ends = [f"{run['evaluation']['success_once']:.2f}" for run in runs(task)]
        assert f"the {task} from {start} to {', '.join(ends)}" in index
        assert start in readme and f"{ends[0]}, {ends[1]} and {ends[2]}" in readme
