"""The arithmetic of buffer size x sigma, by hand-worked numbers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from gipo_envs.errors import UserError
from gipo_vla.reporting.runs import Run, read_runs
from gipo_vla.studies import buffer_and_sigma as study
from gipo_vla.studies import scoring

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "data"


def table(cells: dict[tuple[float | str, int], tuple[float, ...]]) -> pd.Series[float]:
    """Scores of one task by sigma, capacity and seed."""
    rows = {
        (*cell, "window-open-v3", seed): value
        for cell, own in cells.items()
        for seed, value in enumerate(own)
    }
    index = pd.MultiIndex.from_tuples(list(rows), names=["sigma", "capacity", "task", "seed"])
    return pd.Series(list(rows.values()), index)


CELLS = table(
    {
        (0.5, 100): (0.5, 0.7),
        (1.0, 100): (0.6, 0.6),
        ("auto", 100): (0.4, 0.6),
        (0.5, 900): (0.1, 0.1),
        (1.0, 900): (1.0, 0.8),
        ("auto", 900): (0.6, 0.6),
    }
)
DEVIATION = (3 * 0.2**2 / 2 / 6) ** 0.5
"""A pair that differs by d has the variance d^2 / 2; three of the six pairs differ by 0.2."""
HALF = stats.t.ppf(0.975, 6) * DEVIATION
"""Two runs in a cell: the root of 2 / 2 is 1."""


def test_cells_share_one_deviation() -> None:
    deviation, freedom = study.pooled_deviation(CELLS)
    assert deviation == pytest.approx(DEVIATION)
    assert freedom == 6
    assert study.least_difference(CELLS) == pytest.approx(HALF)


def test_the_best_sigma_of_each_capacity_and_those_that_may_be_as_good() -> None:
    assert pytest.approx(0.245, abs=1e-3) == HALF
    found = study.best_sigmas(CELLS)
    assert found.loc[900].to_dict() == {"best sigma": 1.0, "score": 0.9, "not told apart": ""}
    assert found.loc[100, "score"] == pytest.approx(0.6)
    assert "auto" in found.loc[100, "not told apart"]


def test_what_auto_costs() -> None:
    found = study.cost_of_auto(CELLS)
    # 0.5 - 0.6 and 0.6 - 0.9; sigma 1 is the best of the fixed ones at both capacities.
    half = HALF / 2**0.5
    assert found["sigma 1"] == (pytest.approx(-0.2), pytest.approx(half))
    assert found["best fixed sigma"] == (pytest.approx(-0.2), pytest.approx(half))


def test_stored_values_are_paired_by_sigma_and_seed() -> None:
    stored = table({(0.5, 900): (0.3, 0.2), ("auto", 900): (0.5, 0.7)})
    pairs = study.stored_minus_recomputed(stored, CELLS)
    assert [*pairs.index.names] == ["sigma", "task", "seed"]
    assert sorted(pairs.round(9)) == [-0.1, 0.1, 0.1, 0.2]
    told = scoring.blocked_difference(pairs, "sigma")
    assert (told["pairs"], told["degrees_of_freedom"]) == (4, 2)


def test_the_figure_has_a_number_for_each_cell_and_the_lag_below_each_capacity() -> None:
    cells = CELLS.groupby(level=["sigma", "capacity"]).agg(["mean"])
    cells["lag"] = [1.0 if capacity == 100 else 20.0 for _, capacity in cells.index]
    cells["P95 |log rho|"] = 0.5
    cells["return over training"] = 1234.5
    axes, returns, *_ = study.heat_map(cells).axes
    assert {text.get_text() for text in returns.texts} == {"1234"}
    assert sorted(text.get_text() for text in axes.texts) == ["0.10", "0.50", "0.60", "0.60", "0.60", "0.90"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100\nlag 1", "900\nlag 20"]
    # The widest sigma above, as on an axis that points up.
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["auto", "1.0", "0.5"]


def test_runs_without_a_sigma_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ppo = Run("a", {"objective.name": "ppo", "seed": 1}, [{"iteration": 1}])
    monkeypatch.setattr(study, "read_runs", lambda folders: ([ppo], []))
    with pytest.raises(UserError, match="no sigma"):
        study.scored([Path("x")], Path("y"))


def test_part_of_the_runs_gives_what_it_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Sigma auto is the last that a sweep comes to."""

    def without_auto(folders: list[Path]) -> tuple[list[Run], list[str]]:
        runs, remarks = read_runs(folders)
        return [run for run in runs if run.config["objective.sigma"] != "auto"], remarks

    monkeypatch.setattr(study, "read_runs", without_auto)
    folders = [str(RESULTS / "buffer_and_sigma"), f"untrained={RESULTS / 'old_data_untrained'}"]
    assert study.main([*folders, f"stored={tmp_path / 'none'}"]) == 0
    told = capsys.readouterr().out
    assert "best sigma" in told and "auto" not in told
