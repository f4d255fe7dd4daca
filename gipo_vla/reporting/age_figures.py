"""Figures of samples by their age: how old they are, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gipo_vla.objectives.diagnostics import AGES, LAG_DECILES
from gipo_vla.reporting import summary
from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.grouping import Configuration
from gipo_vla.reporting.style import Layout, axes_grid, legend

FRACTIONS = (
    ("zero_fraction", "zero: coefficient exactly 0"),
    ("damped_fraction", "damped: coefficient below 0.001"),
)


def fractions_by_age(comparison: Comparison, layout: Layout) -> Figure | None:
    """Share of samples that count for nothing, or for next to nothing, in each fifth by lag."""
    figure, grid = axes_grid(
        len(FRACTIONS), len(layout.panels), width=_width(layout), height=2.2, sharex="col", sharey="row"
    )
    drawn = False
    for row, (metric, title) in zip(grid, FRACTIONS):

        def draw(axes: Any, name: str, one: Configuration, metric: str = metric) -> bool:
            points = [
                (lag, share)
                for age in range(1, AGES + 1)
                if (lag := summary.mean_over(one.runs, f"staleness/lag_mean_age{age}")) is not None
                and (share := summary.mean_over(one.runs, f"staleness/{metric}_age{age}")) is not None
            ]
            if points:
                style = {"color": layout.colour(name), "marker": layout.marker(name), "markersize": 5}
                axes.plot(*np.array(points).T, label=name, **style)
            return bool(points)

        drawn |= _each(row, layout, draw)
        row[0].set_ylabel(title)
        # Shares may be tiny everywhere; an axis to 1 would hide the difference, one to 1e-6 would invent one.
        row[0].set_ylim(-0.01, max(0.1, min(1.03, row[0].get_ylim()[1])))
    return _finished(figure, grid, layout, "mean lag of a fifth of the samples (updates)") if drawn else None


def lag_histogram(comparison: Comparison, layout: Layout) -> Figure | None:
    """Density of the samples' lags, from their deciles: every step holds a tenth of them."""
    figure, grid = axes_grid(1, len(layout.panels), width=_width(layout), height=2.8, sharey=True)

    def draw(axes: Any, name: str, one: Configuration) -> bool:
        levels = [f"staleness/lag_p{round(100 * level)}" for level in LAG_DECILES]
        edges = [0.0, *(summary.mean_over(one.runs, level) for level in (*levels, "staleness/lag_max"))]
        if None in edges:
            return False
        # Where lags tie, a tenth is as wide as one update.
        widths = np.maximum(np.diff(np.array(edges, float)), 1.0)
        axes.stairs(1 / len(widths) / widths, edges, color=layout.colour(name), label=name, baseline=None)
        return True

    if not _each(grid[0], layout, draw):
        return None
    grid[0, 0].set_ylabel("share of samples an update of lag")
    grid[0, 0].set_ylim(bottom=0)
    return _finished(figure, grid, layout, "lag (updates)")


def _width(layout: Layout) -> float:
    return 6.0 if len(layout.panels) == 1 else 3.4


def _each(row: Any, layout: Layout, draw: Callable[[Any, str, Configuration], bool]) -> bool:
    """Draw every configuration into its panel; whether there was anything to draw."""
    drawn = [draw(axes, name, one) for axes, panel in zip(row, layout.panels) for name, one in panel.members]
    return any(drawn)


def _finished(figure: Figure, grid: Any, layout: Layout, x_label: str) -> Figure:
    for axes, panel in zip(grid[0], layout.panels):
        axes.set_title(panel.title)
    for axes in grid[-1]:
        axes.set_xlabel(x_label)
        axes.set_xlim(left=0)
    legend(figure, grid.flat, layout.names)
    return figure
