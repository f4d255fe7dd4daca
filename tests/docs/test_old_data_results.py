"""What the page on old data says of experiment A is what its study gives on the data kept beside it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd
import pytest

from gipo_vla.reporting.runs import read_runs
from gipo_vla.studies import old_data, scoring
from tests.docs.pages import ROOT

RESULTS = ROOT / "docs" / "results"
ARMS = {
    old_data.GIPO: "GIPO, 3e-4, stale",
    old_data.PPO: "PPO, 3e-4, stale",
    old_data.SAPO: "SAPO, 3e-4, stale",
    old_data.FRESH_GIPO: "GIPO, 3e-4, fresh",
    old_data.FRESH_PPO: "PPO, 3e-4, fresh",
    old_data.TUNED_GIPO: "GIPO, 1e-3, stale",
    old_data.TUNED_PPO: "PPO, 3e-3, stale",
}


def arm_row(arm: Hashable, row: pd.Series[Any]) -> str:
    cells = (
        ARMS[arm],  # type: ignore[index]
        f"{row['count']:.0f}",
        f"{row['mean']:.2f} ({row['std']:.2f})",
        f"{row['success at end']:.2f}",
        f"{row['return over training']:.0f}",
        f"{row['lag']:.1f}",
        f"{row['P95 |log rho|']:.2f}",
        f"{row['zero fraction']:.2f}",
        f"{row['damped fraction']:.2f}",
        f"{row['entropy']:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def difference_row(name: Hashable, row: pd.Series[Any]) -> str:
    interval = f"{row['low']:+.2f} .. {row['high']:+.2f}"
    p_values = [f"{row[key]:.1g}" if row[key] >= 0 else "" for key in ("p", "p_holm", "p_permutation")]
    return f"| {name} | {row['pairs']:.0f} | {row['mean']:+.2f} | {interval} | {' | '.join(p_values)} |"


@pytest.fixture(scope="module")
def page() -> list[str]:
    return (RESULTS / "old_data.md").read_text().splitlines()


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Arms, and differences between them."""
    runs = read_runs([RESULTS / "data" / "old_data_claim"])[0]
    untrained = read_runs([RESULTS / "data" / "old_data_untrained"])[0]
    values = scoring.scores(runs, untrained, old_data.ARM)
    return scoring.arms_table(runs, values, old_data.ARM), old_data.differences_table(values)


def test_arms(page: list[str], tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    for arm, row in tables[0].iterrows():
        assert arm_row(arm, row) in page


def test_differences(page: list[str], tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    for name, row in tables[1].iterrows():
        assert difference_row(name, row) in page


def test_the_readme(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    said = " ".join((ROOT / "README.md").read_text().split())
    for name, words in (
        ("GIPO - PPO, stale", "GIPO ends {} above PPO on old data ({} to {};"),
        ("the same, minus fresh", "On fresh data the first is less by {} ({} to {})."),
        ("GIPO 1e-3 - PPO 3e-3, stale", "and {} above ({} to {}) where each has a learning rate of its own"),
    ):
        row = tables[1].loc[name]
        assert words.format(*(f"{row[key]:.2f}" for key in ("mean", "low", "high"))) in said
