"""Figures of where configurations ended: scores, and the staleness of the settled half of training.

All of them return None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gipo_vla.objectives.diagnostics import AGES, LAG_DECILES
from gipo_vla.reporting import results, summary
from gipo_vla.reporting.archive import thin
from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.grouping import Configuration
from gipo_vla.reporting.statistics import Estimate
from gipo_vla.reporting.style import (
    LIMIT,
    Layout,
    axes_grid,
    draw_floor,
    draw_members,
    hide,
    legend,
    name_rows,
    rate,
)
from gipo_vla.reporting.summary import Score, mean_over

POINTS_PER_RUN = 40
MOST_BESIDE = 4
OVER_TRAINING = "mean over training"


# -------------------------------------------------------------------------------------------------- scores


def _overall(comparison: Comparison) -> Mapping[str, Score]:
    """Titles and scores of the figures that show a configuration in one number."""
    first = "" if comparison.score == "success_once" else f"{comparison.noun}, "
    return {f"{first}at the end of training": comparison.score, OVER_TRAINING: "over_training"}


def scores(comparison: Comparison, layout: Layout) -> Figure | None:
    """Success of each configuration over all tasks, at the end and over training."""
    panels = {
        title: [comparison.estimate(one, score) for one in comparison.configurations]
        for title, score in _overall(comparison).items()
    }
    return _interval_panels(comparison, layout, panels)


def success_per_task(comparison: Comparison, layout: Layout) -> Figure | None:
    """Success of each configuration on each task."""
    panels = {
        task: [comparison.estimate(one, task=task) for one in comparison.configurations]
        for task in comparison.tasks
    }
    return _interval_panels(comparison, layout, panels)


def _interval_panels(
    comparison: Comparison, layout: Layout, panels: Mapping[str, Sequence[Estimate[float] | None]]
) -> Figure | None:
    """Panels with a row for each configuration: its estimate as a dot on its interval."""
    if comparison.single:
        return None
    labels = [one.label for one in comparison.configurations]
    colours = {one.label: layout.colour(name) for name, one in layout.members}
    rows = -(-len(panels) // MOST_BESIDE)
    columns = -(-len(panels) // rows)
    figure, grid = axes_grid(
        rows, columns, width=4.2 if columns == 2 else 3.0, height=0.8 + 0.22 * len(labels), sharey=True
    )
    hide(grid.flat[len(panels) :])
    for axes, (title, estimates) in zip(grid.flat, panels.items()):
        for place, (label, result) in enumerate(zip(labels, estimates)):
            if result is None:
                continue
            style: dict[str, Any] = {"color": colours[label]}
            if result.low is not None:
                ends = (result.low, result.high)
                axes.plot(ends, [place] * 2, linewidth=5, alpha=0.3, solid_capstyle="butt", **style)
            axes.plot(result.value, place, "o", markersize=5, **style)
        name_rows(axes, labels)
        if comparison.is_rate or title == OVER_TRAINING:
            rate(axes, horizontal=True)
        axes.set_title(title)
    noun = "success" if comparison.is_rate else "score"
    figure.supxlabel(f"{noun}, interquartile mean and 95 % interval", fontsize=9)
    return figure


def sigma_capacity(comparison: Comparison) -> Figure | None:
    """Heat map of success over sigma (and objectives without one) and replay capacity."""
    rows, columns, cells = results.sigma_by_capacity(comparison)
    if not cells:
        return None
    ticks = [_capacity_and_lag(column, cells) for column in columns]
    figure, grid = axes_grid(
        1, 2, width=1.5 + 1.0 * len(columns), height=1.3 + 0.5 * len(rows), sharey=True, sharex=True
    )
    for axes, (title, score) in zip(grid[0], _overall(comparison).items()):
        values = np.full((len(rows), len(columns)), np.nan)
        texts = {}
        a_rate = comparison.is_rate or score == "over_training"
        digits = 2 if a_rate else 0
        for (row, column), one in cells.items():
            result = comparison.estimate(one, score)
            if result is None:
                continue
            place = rows.index(row), columns.index(column)
            values[place] = result.value
            interval = "" if result.low is None else f"\n{result.low:.{digits}f} to {result.high:.{digits}f}"
            star = " *" if summary.regime_of(one.runs) == "stale" else ""
            texts[place] = f"{result.value:.{digits}f}{star}{interval}"
        top = 1.0 if a_rate else max(1.0, float(np.nanmax(values)))
        for place, text in texts.items():
            colour = "white" if values[place] > 0.55 * top else "black"
            axes.text(*place[::-1], text, ha="center", va="center", fontsize=8, color=colour)
        image = axes.imshow(values, vmin=0, vmax=top, cmap="YlGnBu", aspect="auto")
        if not comparison.is_rate:
            figure.colorbar(image, ax=axes, label=title)
        axes.set_xticks(range(len(columns)), ticks)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(title)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    figure.supxlabel("replay capacity (transitions) and mean lag (iterations)", fontsize=9)
    if comparison.is_rate:
        figure.colorbar(image, ax=grid, label="success (IQM)")
    return figure


def _capacity_and_lag(capacity: float, cells: Mapping[tuple[str, float], Configuration]) -> str:
    runs = [run for (_, column), one in cells.items() if column == capacity for run in one.runs]
    lag = mean_over(runs, "staleness/lag_iterations_mean")
    return f"{capacity:,.0f}" + ("" if lag is None else f"\nlag {lag:.1f}")


# ----------------------------------------------------------------------------------------------- staleness


def effective_sample_size(comparison: Comparison, layout: Layout) -> Figure | None:
    """P95 |log rho| of old samples against what they still count for; one dot an iteration."""
    names = ["staleness/p95_abs_log_ratio_old", "staleness/effective_sample_size_old"]
    figure, grid = axes_grid(
        1, len(layout.panels), width=_width(layout), height=3.4, sharex=True, sharey=True
    )

    def draw(axes: Axes, name: str, one: Configuration) -> bool:
        settled = [summary.settled(run) for run in one.runs]
        chosen = [rows.iloc[thin(range(len(rows)), POINTS_PER_RUN)] for rows in settled]
        dots = [rows.reindex(columns=names).dropna().to_numpy(float) for rows in chosen]
        x, y = np.concatenate(dots).T
        if not len(x):
            return False
        style: dict[str, Any] = {"color": layout.colour(name), "label": name, "markersize": 7}
        axes.plot(x, y, ".", color=style["color"], alpha=0.25, markersize=4, markeredgewidth=0)
        axes.plot(np.median(x), np.median(y), layout.marker(name), markeredgecolor="white", **style)
        return True

    if not draw_members(grid[0], layout, draw):
        return None
    for axes in grid[0]:
        rate(axes)
        axes.axvline(summary.STALE_P95_ABS_LOG_RATIO, **LIMIT)
        draw_floor(axes.axvline, summary.numerical_floor(comparison.runs))
    grid[0, 0].set_ylabel("effective sample size of old samples")
    return _finished(figure, grid, layout, "P95 |log ρ| of old samples")


def fractions_by_age(layout: Layout) -> Figure | None:
    """Share of samples that count for nothing, or for next to nothing, in each fifth by lag."""
    metrics = {"zero_fraction": "coefficient 0", "damped_fraction": "coefficient < 0.001"}
    figure, grid = axes_grid(
        len(metrics), len(layout.panels), width=_width(layout), height=2.2, sharex="col", sharey="row"
    )
    drawn = False
    for row, (metric, title) in zip(grid, metrics.items()):

        def draw(axes: Axes, name: str, one: Configuration, metric: str = metric) -> bool:
            points = [
                (lag, share)
                for age in range(1, AGES + 1)
                if (lag := mean_over(one.runs, f"staleness/lag_mean_age{age}")) is not None
                and (share := mean_over(one.runs, f"staleness/{metric}_age{age}")) is not None
            ]
            if points:
                style: dict[str, Any] = {"color": layout.colour(name), "marker": layout.marker(name)}
                axes.plot(*np.array(points).T, label=name, markersize=5, **style)
            return bool(points)

        drawn |= draw_members(row, layout, draw)
        row[0].set_ylabel(title)
        # Shares may be tiny everywhere; an axis to 1 would hide the difference, one to 1e-6 would invent one.
        row[0].set_ylim(-0.01, max(0.1, min(1.03, row[0].get_ylim()[1])))
    return _finished(figure, grid, layout, "mean lag of a fifth of the samples (updates)") if drawn else None


def lag_histogram(layout: Layout) -> Figure | None:
    """Density of the samples' lags, from their deciles: every step holds a tenth of them."""
    figure, grid = axes_grid(1, len(layout.panels), width=_width(layout), height=2.8, sharey=True)
    names = [*(f"lag_p{round(100 * level)}" for level in LAG_DECILES), "lag_max"]

    def draw(axes: Axes, name: str, one: Configuration) -> bool:
        found = [mean_over(one.runs, f"staleness/{metric}") for metric in names]
        edges = [0.0, *(edge for edge in found if edge is not None)]
        if None in found:
            return False
        # Where lags tie, a tenth is as wide as one update.
        widths = np.maximum(np.diff(edges), 1.0)
        axes.stairs(1 / len(widths) / widths, edges, color=layout.colour(name), label=name, baseline=None)
        return True

    if not draw_members(grid[0], layout, draw):
        return None
    grid[0, 0].set_ylabel("share of samples an update of lag")
    grid[0, 0].set_ylim(bottom=0)
    return _finished(figure, grid, layout, "lag (updates)")


def lag(comparison: Comparison) -> Figure | None:
    """Mean, 95th percentile and greatest lag of the samples of each configuration."""
    labels = [one.label for one in comparison.configurations]
    units = {
        "lag in iterations": {"mean": "lag_iterations_mean", "greatest": "lag_iterations_max"},
        "lag in updates": {"mean": "lag_mean", "P95": "lag_p95", "greatest": "lag_max"},
    }
    markers = {"mean": "o", "P95": "D", "greatest": "|"}
    figure, grid = axes_grid(1, 2, width=3.8, height=1.2 + 0.24 * len(labels), sharey=True)
    drawn = False
    for axes, (title, names) in zip(grid[0], units.items()):
        for place, one in enumerate(comparison.configurations):
            values = {name: mean_over(one.runs, f"staleness/{metric}") for name, metric in names.items()}
            known = [value for value in values.values() if value is not None]
            if not known:
                continue
            drawn = True
            axes.plot([0, max(known)], [place, place], color="#bbbbbb", linewidth=2, zorder=1)
            for name, value in values.items():
                style = {"markeredgewidth": 2 if name == "greatest" else 0, "markersize": 7}
                label = name if place == 0 else None
                axes.plot(value, place, markers[name], color="#0072B2", label=label, **style)
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        name_rows(axes, labels)
    if not drawn:
        return None
    grid[0, 0].axvline(summary.STALE_LAG_ITERATIONS, **LIMIT)
    legend(figure, [grid[0, 1]])
    return figure


def _width(layout: Layout) -> float:
    return 6.0 if len(layout.panels) == 1 else 3.4


def _finished(figure: Figure, grid: Any, layout: Layout, x_label: str) -> Figure:
    for axes, panel in zip(grid[0], layout.panels):
        axes.set_title(panel.title)
    for axes in grid[-1]:
        axes.set_xlabel(x_label)
        axes.set_xlim(left=0)
    legend(figure, grid.flat, layout.names)
    return figure
