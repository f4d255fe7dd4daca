"""Figures of where configurations ended: scores, and the staleness of the settled half of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gipo_vla.reporting import results, summary
from gipo_vla.reporting.archive import thin
from gipo_vla.reporting.comparison import Comparison, score_estimate, score_strata
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.statistics import Array, Estimate, estimate
from gipo_vla.reporting.style import Layout, axes_grid, draw_floor, legend, name_rows, rate
from gipo_vla.reporting.summary import Score

POINTS_PER_RUN = 40
MOST_BESIDE = 4


def _overall(comparison: Comparison) -> tuple[tuple[str, Score], ...]:
    """Titles and scores of the figures that show a configuration in one number."""
    first = "at the end of training"
    if comparison.score != "success_once":
        first = f"{comparison.noun}, {first}"
    return (first, comparison.score), ("mean over training", "over_training")


def scores(comparison: Comparison, layout: Layout) -> Figure | None:
    """Success of each configuration over all tasks, at the end and over training."""
    if comparison.single:
        return None
    panels = [
        (title, [score_estimate(one, comparison.source, score) for one in comparison.configurations])
        for title, score in _overall(comparison)
    ]
    return _interval_panels(comparison, layout, panels)


def success_per_task(comparison: Comparison, layout: Layout) -> Figure | None:
    """Success of each configuration on each task; None where there is a single task or run."""
    if comparison.single or len(comparison.tasks) < 2:
        return None
    strata = [score_strata(one, comparison.source, comparison.score) for one in comparison.configurations]
    panels = [
        (task, [estimate([own[task]]) if task in own else None for own in strata])
        for task in comparison.tasks
    ]
    return _interval_panels(comparison, layout, panels)


def _interval_panels(
    comparison: Comparison, layout: Layout, panels: Sequence[tuple[str, Sequence[Estimate | None]]]
) -> Figure:
    """Panels with a row for each configuration: its estimate as a dot on its interval."""
    labels = [one.label for one in comparison.configurations]
    rows = -(-len(panels) // MOST_BESIDE)
    columns = -(-len(panels) // rows)
    figure, grid = axes_grid(
        rows, columns, width=4.2 if columns == 2 else 3.0, height=0.8 + 0.22 * len(labels), sharey=True
    )
    for unused in grid.flat[len(panels) :]:
        unused.set_visible(False)
    for axes, (title, estimates) in zip(grid.flat, panels):
        for place, (label, result) in enumerate(zip(labels, estimates)):
            if result is not None:
                _interval(axes, place, result, _colour(layout, label))
        name_rows(axes, labels)
        if comparison.is_rate or title == "mean over training":
            rate(axes, horizontal=True)
        axes.set_title(title)
    noun = "success" if comparison.is_rate else "score"
    figure.supxlabel(f"{noun}, interquartile mean and 95 % interval", fontsize=9)
    return figure


def _interval(axes: Any, place: float, result: Estimate, colour: Any) -> None:
    if result.low is not None:
        axes.plot(
            [result.low, result.high],
            [place, place],
            color=colour,
            linewidth=5,
            alpha=0.3,
            solid_capstyle="butt",
        )
    axes.plot(result.value, place, "o", color=colour, markersize=5)


def _colour(layout: Layout, label: str) -> Any:
    name = next(name for panel in layout.panels for name, one in panel.members if one.label == label)
    return layout.colour(name)


def sigma_capacity(comparison: Comparison) -> Figure | None:
    """Heat map of success over sigma (and objectives without one) and replay capacity."""
    if not results.has_sigma_and_capacity(comparison):
        return None
    rows, columns, cells = results.sigma_by_capacity(comparison)
    figure, grid = axes_grid(
        1, 2, width=1.5 + 1.0 * len(columns), height=1.3 + 0.5 * len(rows), sharey=True, sharex=True
    )
    for axes, (title, score) in zip(grid[0], _overall(comparison)):
        values = np.full((len(rows), len(columns)), np.nan)
        results_of = {
            (rows.index(row), columns.index(column)): (one, score_estimate(one, comparison.source, score))
            for (row, column), one in cells.items()
        }
        for place, (_, result) in results_of.items():
            values[place] = result.value if result else np.nan
        a_rate = comparison.is_rate or score == "over_training"
        top = 1.0 if a_rate else max(1.0, float(np.nanmax(values)))
        digits = 2 if a_rate else 0
        for (row, column), (one, result) in results_of.items():
            if result is None:
                continue
            interval = "" if result.low is None else f"\n{result.low:.{digits}f} to {result.high:.{digits}f}"
            star = " *" if summary.regime_of(one.runs) == "stale" else ""
            axes.text(
                column,
                row,
                f"{result.value:.{digits}f}{star}{interval}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if result.value > 0.55 * top else "black",
            )
        image = axes.imshow(values, vmin=0, vmax=top, cmap="YlGnBu", aspect="auto")
        if not comparison.is_rate:
            figure.colorbar(image, ax=axes, label=title)
        axes.set_xticks(range(len(columns)), [f"{column:,.0f}" for column in columns])
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(title)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    figure.supxlabel("replay capacity (transitions)", fontsize=9)
    if comparison.is_rate:
        figure.colorbar(image, ax=grid, label="success (IQM)")
    return figure


def effective_sample_size(comparison: Comparison, layout: Layout) -> Figure | None:
    """P95 |log rho| of old samples against what they still count for; one dot an iteration."""
    figure, grid = axes_grid(
        1,
        len(layout.panels),
        width=6 if len(layout.panels) == 1 else 3.4,
        height=3.4,
        sharex=True,
        sharey=True,
    )
    drawn = False
    for axes, panel in zip(grid[0], layout.panels):
        for name, one in panel.members:
            x, y = np.concatenate([_dots(run) for run in one.runs]).T
            if not len(x):
                continue
            drawn = True
            colour = layout.colour(name)
            axes.plot(x, y, ".", color=colour, alpha=0.25, markersize=4, markeredgewidth=0)
            axes.plot(
                np.median(x),
                np.median(y),
                layout.marker(name),
                color=colour,
                markersize=7,
                markeredgecolor="white",
                label=name,
            )
        axes.set_title(panel.title)
        axes.set_xlabel("P95 |log ρ| of old samples")
        rate(axes)
    if not drawn:
        return None
    for axes in grid[0]:
        axes.axvline(
            summary.STALE_P95_ABS_LOG_RATIO, color="#888888", linewidth=0.8, linestyle="--", zorder=0
        )
        draw_floor(axes.axvline, summary.numerical_floor(comparison.runs))
        axes.set_xlim(left=0)
    grid[0, 0].set_ylabel("effective sample size of old samples")
    legend(figure, grid[0], layout.names)
    return figure


def _dots(run: Run) -> Array:
    """P95 and effective sample size of old samples, in some iterations of the settled half: (dots, 2)."""
    rows = summary.settled(run)
    chosen = rows.iloc[thin(range(len(rows)), POINTS_PER_RUN)]
    names = ["staleness/p95_abs_log_ratio_old", "staleness/effective_sample_size_old"]
    return chosen.reindex(columns=names).dropna().to_numpy(float)


def lag(comparison: Comparison) -> Figure | None:
    """Mean, 95th percentile and greatest lag of the samples of each configuration."""
    labels = [one.label for one in comparison.configurations]
    units: Sequence[tuple[str, tuple[tuple[str, str], ...]]] = (
        ("lag in iterations", (("lag_iterations_mean", "mean"), ("lag_iterations_max", "greatest"))),
        ("lag in updates", (("lag_mean", "mean"), ("lag_p95", "P95"), ("lag_max", "greatest"))),
    )
    markers = {"mean": "o", "P95": "D", "greatest": "|"}
    figure, grid = axes_grid(1, 2, width=3.8, height=1.2 + 0.24 * len(labels), sharey=True)
    drawn = False
    for axes, (title, names) in zip(grid[0], units):
        for place, one in enumerate(comparison.configurations):
            values = [summary.mean_over(one.runs, f"staleness/{name}") for name, _ in names]
            known = [value for value in values if value is not None]
            if not known:
                continue
            drawn = True
            axes.plot([0, max(known)], [place, place], color="#bbbbbb", linewidth=2, zorder=1)
            for value, (_, name) in zip(values, names):
                axes.plot(
                    value,
                    place,
                    markers[name],
                    color="#0072B2",
                    markersize=7,
                    markeredgewidth=2 if name == "greatest" else 0,
                    label=name if place == 0 else None,
                )
        axes.set_xlabel(title)
        axes.set_xlim(left=0)
        name_rows(axes, labels)
    if not drawn:
        return None
    grid[0, 0].axvline(summary.STALE_LAG_ITERATIONS, color="#888888", linewidth=0.8, linestyle="--", zorder=0)
    legend(figure, [grid[0, 1]])
    return figure
