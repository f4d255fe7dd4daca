"""Figures of what happened over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gipo_vla.reporting import curves, summary
from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.curves import Curve
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.style import Layout, axes_grid, draw_floor, legend, rate, thousands

Curves = Mapping[tuple[str, str], Curve]

NAMES = {
    curves.SUCCESS: "success of the last 100 episodes",
    curves.HELD_OUT: "success on held-out states",
    "staleness/lag_iterations_mean": "mean lag (iterations)",
    "staleness/p95_abs_log_ratio": "P95 |log ρ|",
    "staleness/effective_sample_size_old": "effective sample size, old",
    "staleness/damped_fraction_old": "damped fraction, old",
    "policy/entropy": "entropy (nats a token)",
    "value/explained_variance": "explained variance",
    "gradient_norm/policy": "policy gradient norm",
    "loss/value": "value loss",
    "credit/merge_ratio": "merge ratio",
    "credit/nonzero_share": "steps with a graph advantage",
    "credit/fallback_share": "groups fallen back",
    "credit/gain_std": "spread of information gains",
    "credit/belief_brier": "Brier score of the belief",
    "credit/belief_calibration_error": "calibration error of the belief",
}
RATES = {
    curves.SUCCESS,
    curves.HELD_OUT,
    "staleness/effective_sample_size_old",
    "staleness/damped_fraction_old",
    "credit/merge_ratio",
    "credit/nonzero_share",
    "credit/fallback_share",
}


def learning_curves(comparison: Comparison, layout: Layout, made: Curves) -> Figure:
    """Success while training; for a single run with its held-out evaluations."""
    if comparison.single:
        return _single_run(comparison.runs[0])
    return _panels(layout, made, (curves.SUCCESS,), width=4.2 if len(layout.panels) == 1 else 3.4, height=3.2)


def held_out_curves(comparison: Comparison, layout: Layout, made: Curves) -> Figure | None:
    """Success on held-out states while training, where runs evaluated on the way."""
    shown = [curve for (_, metric), curve in made.items() if metric == curves.HELD_OUT]
    if comparison.single or not shown or max(len(curve.env_steps) for curve in shown) < 2:
        return None
    return _panels(
        layout, made, (curves.HELD_OUT,), width=4.2 if len(layout.panels) == 1 else 3.4, height=3.2
    )


def staleness_curves(comparison: Comparison, layout: Layout, made: Curves) -> Figure | None:
    """How old the data were, how far the policy had moved, and what was left of them."""
    return _panels_of_logged(layout, made, curves.STALENESS)


def health_curves(comparison: Comparison, layout: Layout, made: Curves) -> Figure | None:
    """Entropy, explained variance, gradient norm and value loss."""
    return _panels_of_logged(layout, made, curves.HEALTH)


def credit_curves(comparison: Comparison, layout: Layout, made: Curves) -> Figure | None:
    """What the credits over groups say of themselves."""
    return _panels_of_logged(layout, made, curves.CREDIT)


def _panels_of_logged(layout: Layout, made: Curves, metrics: Sequence[str]) -> Figure | None:
    logged = [metric for metric in metrics if any(name == metric for _, name in made)]
    return _panels(layout, made, logged) if logged else None


def _panels(
    layout: Layout, made: Curves, metrics: Sequence[str], width: float = 3.4, height: float = 2.3
) -> Figure:
    """Metrics x panels; with a single panel the metrics stand two in a row."""
    columns = len(layout.panels)
    if columns == 1 and len(metrics) > 1:
        figure, grid = axes_grid((len(metrics) + 1) // 2, 2, width=3.8, height=height, sharex=True)
        places = [(axes, layout.panels[0], metric) for axes, metric in zip(grid.flat, metrics)]
        for unused in grid.flat[len(metrics) :]:
            unused.set_visible(False)
    else:
        figure, grid = axes_grid(len(metrics), columns, width=width, height=height, sharey="row")
        places = [
            (grid[row, column], panel, metric)
            for row, metric in enumerate(metrics)
            for column, panel in enumerate(layout.panels)
        ]
    for axes, panel, metric in places:
        for name, configuration in panel.members:
            curve = made.get((configuration.label, metric))
            if curve is not None:
                _draw(axes, curve, name, layout.colour(name))
        if metric in RATES:
            rate(axes)
        if metric == "staleness/p95_abs_log_ratio":
            floor = summary.numerical_floor([run for _, one in panel.members for run in one.runs])
            draw_floor(axes.axhline, floor)
        if metric == "value/explained_variance":
            # Early fits are arbitrarily bad; below -1 they would hide everything else.
            axes.set_ylim(bottom=max(-1.0, axes.get_ylim()[0]))
        thousands(axes)
        if columns == 1 and len(metrics) > 1:
            axes.set_title(NAMES[metric])
        elif axes.get_subplotspec().is_first_col():
            axes.set_ylabel(NAMES[metric])
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel("env steps")
        if columns > 1 and axes.get_subplotspec().is_first_row():
            axes.set_title(panel.title)
    legend(figure, [axes for axes, *_ in places], layout.names)
    return figure


def _draw(axes: Axes, curve: Curve, name: str, colour: Any) -> None:
    points: dict[str, Any] = {"marker": "o", "markersize": 3} if len(curve.env_steps) < 12 else {}
    axes.plot(curve.env_steps, curve.estimate.value, color=colour, linewidth=1.4, label=name, **points)
    if curve.estimate.low is not None and curve.estimate.high is not None:
        axes.fill_between(
            curve.env_steps, curve.estimate.low, curve.estimate.high, color=colour, alpha=0.18, linewidth=0
        )


def _single_run(run: Run) -> Figure:
    figure, grid = axes_grid(1, 1, width=7, height=3.2)
    axes = grid[0, 0]
    steps, success = curves.series(run, curves.SUCCESS)
    axes.plot(steps, success, color="#7f7f7f", linewidth=1.4, label="training episodes, sampled (last 100)")
    points = [*run.evaluations]
    if run.evaluation is not None:
        points.append(run.evaluation | {"env_steps": run.rows[-1]["env_steps"]})
    points = [row for row in points if row.get("success_once_interval_95")]
    if points:
        value = np.array([row["success_once"] for row in points])
        low, high = np.array([row["success_once_interval_95"] for row in points]).T
        axes.errorbar(
            [row["env_steps"] for row in points],
            value,
            # Rounded ends of an interval may miss the value by 1e-5; a length must not be negative.
            yerr=[np.maximum(value - low, 0), np.maximum(high - value, 0)],
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
