"""Buffer size x sigma, the arithmetic and the figure of docs/results/buffer_and_sigma.md.

::

    python -m gipo_vla.studies.buffer_and_sigma [docs/results/data/buffer_and_sigma] [stored=FOLDER]
        [untrained=FOLDER] [out=FOLDER]

The plan (score, questions, intervals) was committed before the first run. With part of the runs this says
what they give and how many stand behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from gipo_envs.errors import UserError
from gipo_vla import cli, options
from gipo_vla.reporting.runs import Run, read_runs
from gipo_vla.reporting.style import SETTINGS, axes_grid
from gipo_vla.studies.scoring import arms_table, blocked_difference, contrast, scores

ARM = {"sigma": "objective.sigma", "capacity": "replay.capacity"}
"""What tells arms apart: columns, and keys of the configuration."""
AUTO = "auto"

PANELS = {
    "mean": ("score at the end", "YlGnBu", 2),
    "return over training": ("return over training", "YlGnBu", 0),
    "P95 |log rho|": ("P95 |log ρ| of the batches", "OrRd", 2),
}
"""Of the figure: columns of the cells; titles, colours, decimals."""


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    stored: Path = Path("docs/results/data/stored_values")
    """Runs with stored values; a folder that does not exist is left out."""
    untrained: Path = Path("docs/results/data/old_data_untrained")
    """Runs of the untrained policy, which give R_init."""
    out: Path | None = None
    """Where cells.csv and heat_map.png are written; nothing is written without it."""


def pooled_deviation(values: pd.Series[float]) -> tuple[float, int]:
    """Return the deviation of a run within its cell, pooled over cells, and its degrees of freedom.

    Args:
        values: scores by sigma, capacity and others.
    """
    residuals = values - values.groupby(level=[*ARM]).transform("mean")
    freedom = len(values) - values.groupby(level=[*ARM]).ngroups
    return float(np.sqrt((residuals**2).sum() / freedom)), freedom


def least_difference(values: pd.Series[float]) -> float:
    """Return the 95 % half-width of a difference of the means of two cells: t s sqrt(2 / runs of a cell)."""
    deviation, freedom = pooled_deviation(values)
    count = values.groupby(level=[*ARM]).size().min()
    return float(stats.t.ppf(0.975, freedom) * deviation * np.sqrt(2 / count))


def best_sigmas(values: pd.Series[float]) -> pd.DataFrame:
    """Return the sigma with the largest mean score for each capacity, and those not told apart from it."""
    margin = least_difference(values)
    rows = {}
    for capacity, own in values.groupby(level="capacity"):
        means = own.groupby(level="sigma").mean()
        close = means[(means >= means.max() - margin) & (means < means.max())]
        rows[capacity] = {
            "best sigma": means.idxmax(),
            "score": means.max(),
            "not told apart": ", ".join(map(str, close.index)),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("capacity")


def cost_of_auto(values: pd.Series[float]) -> dict[str, tuple[float, float]]:
    """Return auto minus the best of the fixed sigmas, and minus sigma 1, means over capacities, each with the
    half-width of its 95 % interval.

    The interval takes the best sigmas as given, so it is too narrow for the first.
    """
    means = values.groupby(level=[*ARM]).mean().unstack("sigma")
    half = float(least_difference(values) / np.sqrt(len(means)))
    fixed = means.drop(columns=AUTO)
    return {
        "best fixed sigma": (float((means[AUTO] - fixed.max(axis=1)).mean()), half),
        "sigma 1": (float((means[AUTO] - means[1.0]).mean()), half),
    }


def stored_minus_recomputed(stored: pd.Series[float], values: pd.Series[float]) -> pd.Series[float]:
    """Return the paired differences, by sigma, task and seed."""
    both = pd.concat({"stored": stored, "recomputed": values}, names=["values"])
    pairs = contrast(both, {("stored",): 1, ("recomputed",): -1}, ["values"])
    return pairs.droplevel("capacity")


def heat_map(cells: pd.DataFrame) -> Figure:
    """Draw ``PANELS`` over sigma and capacity, with the mean lag below each capacity."""
    figure, grid = axes_grid(1, len(PANELS), width=3.7, height=3.4, sharey=True)
    lags = cells["lag"].groupby(level="capacity").mean()
    for axes, (column, (title, colours, digits)) in zip(grid[0], PANELS.items(), strict=True):
        table = cells[column].unstack("capacity").iloc[::-1]
        least, most = min(0.0, float(table.min().min())), float(table.max().max())
        image = axes.imshow(table, vmin=least, vmax=most, cmap=colours, aspect="auto")
        for (row, at), value in np.ndenumerate(table.to_numpy()):
            colour = "white" if value > least + 0.6 * (most - least) else "black"
            axes.text(at, row, f"{value:.{digits}f}", ha="center", va="center", color=colour)
        axes.set_xticks(
            range(table.shape[1]), [f"{capacity:,}\nlag {lags[capacity]:.0f}" for capacity in table.columns]
        )
        axes.set_yticks(range(len(table)), table.index)
        axes.set_title(title)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes)
    grid[0, 0].set_ylabel("sigma")
    figure.supxlabel("replay capacity (transitions) and mean lag (iterations)", fontsize=9)
    return figure


def scored(folders: Sequence[Path], untrained: Path) -> tuple[list[Run], pd.Series[float]]:
    """Return the runs of the folders and their scores.

    Raises:
        UserError: runs of another objective are among them.
    """
    runs = read_runs(folders)[0]
    for run in runs:
        if run.config["objective.name"] != "gipo":
            raise UserError(f"{run.name} has objective={run.config['objective.name']}, which has no sigma")
    return runs, scores(runs, read_runs([untrained])[0], ARM)


def main(arguments: Sequence[str]) -> int:
    """Print the cells and the answers to the plan's three questions; draw the figure."""
    parsed = options.parse(arguments, Options, __doc__ or "")
    if parsed is None:
        return 0
    own, rest = parsed
    folders = [Path(text) for text in rest] or [Path("docs/results/data/buffer_and_sigma")]
    runs, values = scored(folders, own.untrained)
    cells = arms_table(runs, values, ARM)
    print(cells.round(3).to_string())
    if len(values) > len(cells):
        deviation, freedom = pooled_deviation(values)
        print(f"\ndeviation within a cell: {deviation:.3f} ({freedom} degrees of freedom)")
        print(f"two cells are told apart from {least_difference(values):.3f}\n")
        print(best_sigmas(values).round(3).to_string())
        if {AUTO, 1.0} <= {*values.index.get_level_values("sigma")}:
            for name, (mean, half) in cost_of_auto(values).items():
                print(f"auto - {name}: {mean:+.3f} +- {half:.3f}")
    if own.stored.is_dir():
        pairs = stored_minus_recomputed(scored([own.stored], own.untrained)[1], values)
        told = blocked_difference(pairs, "sigma")
        print("\nstored - recomputed values:", pd.Series(told).round(4).to_dict())
    if own.out:
        own.out.mkdir(parents=True, exist_ok=True)
        cells.to_csv(own.out / "cells.csv")
        with matplotlib.rc_context(SETTINGS):
            heat_map(cells).savefig(own.out / "heat_map.png", metadata={"Software": None})
    return 0


if __name__ == "__main__":
    cli.run(main)
