"""What the page on buffer size and sigma says is what its study gives on the data kept beside it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from gipo_vla.studies import buffer_and_sigma as study
from gipo_vla.studies.scoring import arms_table, blocked_difference
from tests.docs.pages import ROOT

RESULTS = ROOT / "docs" / "results"
DATA = RESULTS / "data"
UNTRAINED = DATA / "old_data_untrained"
ARMS = 20


@pytest.fixture(scope="module")
def page() -> str:
    return (RESULTS / "buffer_and_sigma.md").read_text()


@pytest.fixture(scope="module")
def scored() -> tuple[pd.DataFrame, pd.Series[float]]:
    """Cells, and scores of runs."""
    runs, values = study.scored([DATA / "buffer_and_sigma"], UNTRAINED)
    return arms_table(runs, values, study.ARM), values


def test_all_cells_have_two_seeds(scored: tuple[pd.DataFrame, pd.Series[float]]) -> None:
    assert len(scored[0]) == ARMS and (scored[0]["count"] == 2).all()


def test_cells(page: str, scored: tuple[pd.DataFrame, pd.Series[float]]) -> None:
    cells, values = scored
    lines = page.splitlines()
    for (sigma, capacity), own in values.groupby(level=[*study.ARM]):
        row = cells.loc[(sigma, capacity)]
        seeds = ", ".join(f"{value:.2f}" for value in own.sort_index(level="seed"))
        cell = (
            f"{sigma}",
            f"{capacity:,}",
            f"{row['lag']:.0f}",
            f"**{row['mean']:.2f}** ({seeds})",
            f"{row['success at end']:.2f}",
            f"{row['return over training']:.0f}",
            f"{row['P95 |log rho|']:.2f}",
            f"{row['damped fraction']:.3f}",
            f"{row['entropy']:.1f}",
        )
        assert f"| {' | '.join(cell)} |" in lines


def test_the_best_sigmas(page: str, scored: tuple[pd.DataFrame, pd.Series[float]]) -> None:
    lines = page.splitlines()
    for capacity, row in study.best_sigmas(scored[1]).iterrows():
        cells = (f"{capacity:,}", f"{row['best sigma']}", f"{row['score']:.2f}", f"{row['not told apart']}")
        assert f"| {' | '.join(cells)} |" in lines


def test_the_deviation_and_what_auto_costs(page: str, scored: tuple[pd.DataFrame, pd.Series[float]]) -> None:
    words = " ".join(page.split())
    deviation, freedom = study.pooled_deviation(scored[1])
    assert f"s = {deviation:.3f} ({freedom} degrees of freedom)" in words
    assert f"told apart from {study.least_difference(scored[1]):.3f}" in words
    for name, (mean, half) in study.cost_of_auto(scored[1]).items():
        assert f"`auto` minus {name}: {mean:+.3f} +- {half:.3f}" in words


def test_stored_values(page: str, scored: tuple[pd.DataFrame, pd.Series[float]]) -> None:
    runs, stored = study.scored([DATA / "stored_values"], UNTRAINED)
    pairs = study.stored_minus_recomputed(stored, scored[1])
    assert len(pairs) == 10 and (pairs < 0).all()
    told = blocked_difference(pairs, "sigma")
    words = f"{told['mean']:+.3f} ({told['low']:+.3f} .. {told['high']:+.3f}), p = {told['p']:.2g}"
    assert words in " ".join(page.split())
    cells, by_sigma = arms_table(runs, stored, study.ARM), dict([*pairs.groupby(level="sigma")])
    for (sigma, capacity), own in stored.groupby(level=[*study.ARM]):
        row = cells.loc[(sigma, capacity)]
        seeds = ", ".join(f"{value:.2f}" for value in own.sort_index(level="seed"))
        less = ", ".join(f"{value:+.2f}" for value in by_sigma[sigma].sort_index(level="seed"))
        rest = f"{row['success at end']:.2f} | {row['P95 |log rho|']:.2f}"
        assert f"| {sigma} | **{row['mean']:.2f}** ({seeds}) | {less} | {rest} |" in page.splitlines()


def test_the_figure_is_the_one_that_the_command_draws(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(DATA / "buffer_and_sigma"), f"stored={DATA / 'stored_values'}", f"untrained={UNTRAINED}"]
    assert study.main([*folders, f"out={tmp_path}"]) == 0
    assert "auto - sigma 1" in capsys.readouterr().out
    assert "(buffer_and_sigma/heat_map.png)" in page
    kept, drawn = (Image.open(folder / "heat_map.png") for folder in (RESULTS / "buffer_and_sigma", tmp_path))
    assert kept.size == drawn.size
