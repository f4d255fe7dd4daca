"""Figures of the bias-variance study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gipo_vla.reporting.style import COLOURS, SETTINGS, axes_grid, legend
from gipo_vla.studies.gradient_moments import (
    BEHAVIOURS,
    ESTIMATORS,
    TARGETS,
    Moments,
    by_case,
    typical_mse,
)

FAMILIES: Mapping[str, tuple[str, str]] = {
    "gipo sigma": ("GIPO", COLOURS[0]),
    "gipo half sigma": ("GIPO, half sigma where A ≤ 0", COLOURS[4]),
    "ppo epsilon": ("PPO", COLOURS[1]),
    "sapo": ("SAPO", COLOURS[2]),
    "no_clip": ("No-Clip", COLOURS[3]),
    "zero": ("zero", COLOURS[6]),
}

SHOWN: Mapping[str, tuple[str, str, str]] = {
    "gipo sigma=0.2": ("GIPO, σ 0.2", "#9ecae1", "-"),
    "gipo sigma=0.5": ("GIPO, σ 0.5", "#4292c6", "-"),
    "gipo sigma=1": ("GIPO, σ 1", "#2060a8", "-"),
    "gipo sigma=2": ("GIPO, σ 2", "#08306b", "-"),
    "ppo epsilon=0.2": ("PPO, ε 0.2", COLOURS[1], "--"),
    "sapo": ("SAPO", COLOURS[2], "-."),
    "no_clip": ("No-Clip", COLOURS[3], "-"),
    "zero": ("zero", COLOURS[6], ":"),
}
"""Estimators in the figures of MSE(n): label, colour, line."""

N = np.logspace(0, 4, 81)


def write(results: Sequence[Moments], folder: Path) -> list[str]:
    """Draw all figures into ``folder``; returns the file names."""
    made = {"pareto": pareto, "mse": mse, "mse_cases": mse_cases}
    with matplotlib.rc_context(SETTINGS):
        for name, draw in made.items():
            draw(results).savefig(folder / f"{name}.png", metadata={"Software": None})
    return [f"{name}.png" for name in made]


def pareto(results: Sequence[Moments]) -> Figure:
    """Bias against standard deviation, medians over the off-policy cases; a family is a path."""
    figure, grid = axes_grid(1, 1, width=6.4, height=4.8)
    axes: Axes = grid[0, 0]
    bias = np.linspace(0, 1, 200)
    for samples, name, place in ((1, "one sample", (0.0, 1.02)), (3, "the mean of three", (0.13, 1.74))):
        axes.plot(bias, np.sqrt(samples * (1 - bias**2)), color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.text(*place, f"below: {name} beats zero", color="#888888", fontsize=7)
    for family, (title, colour) in FAMILIES.items():
        members = [name for name in ESTIMATORS if name.partition("=")[0] == family]
        points = [_medians(results, name) for name in members]
        x, y = np.array(points).T
        marker = "s" if family == "zero" else "o"
        axes.plot(x, y, "-", marker=marker, color=colour, markersize=5, linewidth=1.2, label=title)
        if family in ("gipo sigma", "gipo half sigma"):
            # The smallest widths all lie at bias 1 and deviation 0.
            for name, point in zip(members[3:], points[3:]):
                _note(axes, f"σ {name.rpartition('=')[2]}", point, (6, 4), colour)
    _note(axes, "σ 0.1 to 0.3", (1, 0), (-6, -11), COLOURS[0])
    _note(axes, "ε 0.1 to 0.5", (0.275, 1.14), (-8, -9), COLOURS[1])
    axes.set_xlabel("|bias| / |true gradient|")
    axes.set_ylabel("standard deviation of one sample / |true gradient|")
    axes.set_xlim(-0.04, 1.06)
    axes.set_ylim(-0.1, 1.85)
    legend(figure, [axes])
    return figure


def _note(axes: Axes, text: str, point: tuple[float, float], shift: tuple[int, int], colour: str) -> None:
    """Write beside a point, on the side that the shift (in points) leads to."""
    side = "right" if shift[0] < 0 else "left"
    axes.annotate(text, point, shift, textcoords="offset points", fontsize=8, ha=side, color=colour)


def _medians(results: Sequence[Moments], estimator: str) -> tuple[float, float]:
    own = [one for one in results if one.estimator == estimator and not one.on_policy]
    bias = [abs(one.bias / one.true_gradient) for one in own]
    deviation = [one.variance**0.5 / abs(one.true_gradient) for one in own]
    return float(np.median(bias)), float(np.median(deviation))


def _mse(axes: Axes, own: Mapping[str, Sequence[Moments]], width: float) -> None:
    """Lines of the relative MSE over n: the geometric mean over each estimator's moments."""
    for name, (title, colour, line) in SHOWN.items():
        values = [typical_mse(own[name], samples) for samples in N]
        axes.loglog(N, values, line, color=colour, linewidth=width, label=title)
    # The usual labels of a logarithmic axis are formulas, which the style of our figures prints as they are.
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def mse(results: Sequence[Moments]) -> Figure:
    """MSE of the mean of n samples, relative to that of no gradient, geometric mean over off-policy cases."""
    figure, grid = axes_grid(1, 1, width=6.4, height=4.2)
    axes: Axes = grid[0, 0]
    off_policy = [one for one in results if not one.on_policy]
    _mse(axes, {name: [one for one in off_policy if one.estimator == name] for name in SHOWN}, width=1.6)
    axes.set_ylim(3e-4, 6)
    axes.set_xlabel("samples averaged, n")
    axes.set_ylabel("MSE(n) / MSE of the zero estimator")
    legend(figure, [axes])
    return figure


def mse_cases(results: Sequence[Moments]) -> Figure:
    """The same for each of the 21 cases."""
    figure, grid = axes_grid(len(TARGETS), len(BEHAVIOURS), width=1.75, height=1.75, sharex=True, sharey=True)
    for axes, ((target, behaviour), own) in zip(grid.flat, by_case(results).items()):
        _mse(axes, {name: [one] for name, one in own.items()}, width=1.2)
        if axes in grid[0]:
            axes.set_title(f"acts: {behaviour}")
        if axes in grid[:, 0]:
            axes.set_ylabel(f"target: {target}")
        if own["no_clip"].on_policy:
            axes.text(0.05, 0.06, "on-policy", transform=axes.transAxes, fontsize=8, color="#666666")
    grid[0, 0].set_ylim(1e-4, 200)
    grid[0, 0].set_xticks([1, 100, 10000])
    figure.supxlabel("samples averaged, n", fontsize=9)
    figure.supylabel("MSE(n) / MSE of the zero estimator", fontsize=9)
    legend(figure, [grid[0, 0]])
    return figure
