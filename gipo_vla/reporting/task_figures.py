"""How each task went over training, for runs that train on several."""

from __future__ import annotations

import math
from itertools import groupby

from matplotlib.figure import Figure

from gipo_vla.reporting import curves
from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.style import Layout, axes_grid, legend, rate, thousands

COLUMNS = 5


def success_of_each_task(comparison: Comparison, layout: Layout) -> Figure | None:
    """Success of each task's last training episodes over env steps: a small panel a task.

    None where no run logs tasks apart (each trains on a single one).
    """
    lines = [
        (task, name, curve)
        for task in comparison.tasks
        for panel in layout.panels
        for name, one in panel.members
        if (curve := curves.aggregate_metric(one, f"task/{task}/success_once_recent")) is not None
    ]
    if not lines:
        return None
    tasks = list(dict.fromkeys(task for task, *_ in lines))
    columns = min(COLUMNS, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure, grid = axes_grid(rows, columns, width=2.2, height=1.8, sharex=True, sharey=True)
    for axes, (task, own) in zip(grid.flat, groupby(lines, key=lambda line: line[0])):
        for _, name, curve in own:
            axes.plot(curve.env_steps, curve.estimate.value, color=layout.colour(name), label=name)
        axes.set_title(task, fontsize=8)
        rate(axes)
        thousands(axes)
    for unused in grid.flat[len(tasks) :]:
        unused.set_visible(False)
    figure.supxlabel("env steps", fontsize=9)
    figure.supylabel("success of the last 20 episodes", fontsize=9)
    legend(figure, grid.flat, layout.names)
    return figure
