"""Experiment A on the runs that are kept: its words, and what it says of less than all runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from gipo_vla.reporting.runs import read_runs
from gipo_vla.studies import old_data, scoring

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "data"


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.21, 0.4, "reproduced"),
        (0.2, 0.4, "supported"),
        (0.01, 0.1, "supported"),
        (-0.1, 0.1, "not told apart"),
        (-0.3, -0.1, "contradicted"),
    ],
)
def test_the_words_of_the_plan(low: float, high: float, word: str) -> None:
    assert old_data.verdict(low, high) == word


def test_the_kept_runs_give_what_they_can(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folders = [str(RESULTS / "old_data_claim"), f"untrained={RESULTS / 'old_data_untrained'}"]
    assert old_data.main([*folders, f"out={tmp_path}"]) == 0
    told = capsys.readouterr().out
    kept = pd.read_csv(tmp_path / "scores.csv")
    assert set(kept["task"]) <= set(scoring.REFERENCE)
    stale = kept[(kept["capacity"] == old_data.STALE) & (kept["rate"] == 3e-4)]
    pairs = [(stale["objective"] == name).sum() for name in ("gipo", "ppo")]
    assert ("no verdict" in told) == (min(pairs) < old_data.PAIRS)


def test_the_page_has_the_returns_of_the_untrained_policy() -> None:
    runs, _ = read_runs([RESULTS / "old_data_untrained"])
    by_task = scoring.returns(runs, old_data.ARM).groupby("task").agg(["mean", "std"])
    page = " ".join((RESULTS.parent / "old_data.md").read_text().split())
    for task, (mean, deviation) in zip(by_task.index, by_task.to_numpy()):
        assert f"{task} {mean:.1f} ({deviation:.1f})" in page
