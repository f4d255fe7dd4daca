"""Figures of what happened over training."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gipo_vla.reporting import curves, summary
from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.curves import Curve, Curves
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.style import Layout, axes_grid, draw_floor, hide, legend, rate, thousands

TASKS_BESIDE = 5

RATES = {
    *curves.SUCCESS,
    *curves.HELD_OUT,
    "staleness/effective_sample_size_old",
    "staleness/damped_fraction_old",
    "credit/merge_ratio",
    "credit/nonzero_share",
    "credit/fallback_share",
}


def learning_curves(comparison: Comparison, layout: Layout, made: Curves) -> Figure | None:
    """Success while training; for a single run with its held-out evaluations."""
    if comparison.single:
        return _single_run(comparison.runs[0])
    return logged(layout, made, curves.SUCCESS)


def held_out_curves(comparison: Comparison, layout: Layout, made: Curves) -> Figure | None:
    """Success on held-out states while training, where runs evaluated on the way."""
    lengths = [len(curve.env_steps) for (_, metric), curve in made.items() if metric in curves.HELD_OUT]
    if comparison.single or max(lengths, default=0) < 2:
        return None
    return logged(layout, made, curves.HELD_OUT)


def success_of_each_task(comparison: Comparison, layout: Layout) -> Figure | None:
    """Success of each task's last training episodes over env steps: a small panel a task.

    None where no run logs tasks apart (each trains on a single one).
    """
    lines: dict[str, dict[str, Curve]] = {}
    for task, (name, one) in product(comparison.tasks, layout.members):
        if curve := curves.aggregate_metric(one, f"task/{task}/success_once_recent"):
            lines.setdefault(task, {})[name] = curve
    if not lines:
        return None
    columns = min(TASKS_BESIDE, len(lines))
    figure, grid = axes_grid(
        -(-len(lines) // columns), columns, width=2.2, height=1.8, sharex=True, sharey=True
    )
    for axes, (task, own) in zip(grid.flat, lines.items()):
        for name, curve in own.items():
            axes.plot(curve.env_steps, curve.estimate.value, color=layout.colour(name), label=name)
        axes.set_title(task, fontsize=8)
        rate(axes)
        thousands(axes)
    hide(grid.flat[len(lines) :])
    figure.supxlabel("env steps", fontsize=9)
    figure.supylabel("success of the last 20 episodes", fontsize=9)
    legend(figure, grid.flat, layout.names)
    return figure


def logged(layout: Layout, made: Curves, group: Collection[str]) -> Figure | None:
    """Metrics of a group x panels; with a single panel the metrics stand two in a row.

    None where no run has logged any of them.
    """
    metrics = [metric for metric in group if any(name == metric for _, name in made)]
    if not metrics:
        return None
    columns = len(layout.panels)
    in_pairs = columns == 1 and len(metrics) > 1
    if in_pairs:
        figure, grid = axes_grid((len(metrics) + 1) // 2, 2, width=3.8, height=2.3, sharex=True)
        hide(grid.flat[len(metrics) :])
    else:
        alone = {"width": 4.2 if columns == 1 else 3.4, "height": 3.2}
        size = alone if len(group) == 1 else {"width": 3.4, "height": 2.3}
        figure, grid = axes_grid(len(metrics), columns, sharey="row", **size)
    places = list(zip(grid.flat, product(metrics, layout.panels)))
    for axes, (metric, panel) in places:
        for name, configuration in panel.members:
            if curve := made.get((configuration.label, metric)):
                _draw(axes, curve, name, layout.colour(name))
        if metric in RATES:
            rate(axes)
        if metric == "staleness/p95_abs_log_ratio":
            runs = [run for _, one in panel.members for run in one.runs]
            draw_floor(axes.axhline, summary.numerical_floor(runs))
        if metric == "value/explained_variance":
            # Early fits are arbitrarily bad; below -1 they would hide everything else.
            axes.set_ylim(bottom=max(-1.0, axes.get_ylim()[0]))
        thousands(axes)
        place = axes.get_subplotspec()
        if in_pairs:
            axes.set_title(curves.METRICS[metric])
        elif place.is_first_col():
            axes.set_ylabel(curves.METRICS[metric])
        if place.is_last_row():
            axes.set_xlabel("env steps")
        if columns > 1 and place.is_first_row():
            axes.set_title(panel.title)
    legend(figure, [axes for axes, _ in places], layout.names)
    return figure


def _draw(axes: Axes, curve: Curve, name: str, colour: Any) -> None:
    points: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve.env_steps) < 12 else {}
    made = curve.estimate
    axes.plot(curve.env_steps, made.value, color=colour, linewidth=1.4, label=name, **points)
    if made.low is not None and made.high is not None:
        axes.fill_between(curve.env_steps, made.low, made.high, color=colour, alpha=0.18, linewidth=0)


def _single_run(run: Run) -> Figure:
    figure, grid = axes_grid(1, 1, width=7, height=3.2)
    axes = grid[0, 0]
    steps, success = curves.series(run, *curves.SUCCESS)
    axes.plot(steps, success, color="#7f7f7f", linewidth=1.4, label="training episodes, sampled (last 100)")
    last = {"env_steps": run.rows[-1]["env_steps"]}
    points = [*run.evaluations, *([run.evaluation | last] if run.evaluation else [])]
    points = [row for row in points if row.get("success_once_interval_95")]
    if points:
        value = np.array([row["success_once"] for row in points])
        low, high = np.array([row["success_once_interval_95"] for row in points]).T
        axes.errorbar(
            [row["env_steps"] for row in points],
            value,
            # Rounded ends of an interval may miss the value by 1e-5; a length must not be negative.
            yerr=np.maximum([value - low, high - value], 0),
            fmt="o-",
            markersize=4,
            capsize=3,
            color="#0072B2",
            label=f"held-out initial states, {points[-1].get('mode', '')} (95 %)",
        )
    rate(axes)
    thousands(axes)
    axes.set_xlabel("env steps")
    axes.set_ylabel("success once")
    legend(figure, [axes])
    return figure
