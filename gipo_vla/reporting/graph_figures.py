"""The picture of a graph of states (credit=graph): where the hand was, and how far that is from success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.runs import Run
from gipo_vla.reporting.style import axes_grid

MOST = 4
"""Graphs side by side."""

COLOURS = "viridis_r"


def state_graphs(comparison: Comparison) -> Figure | None:
    """A late graph of each configuration's first run that has one; None where no run has."""
    found: list[tuple[str, Run]] = []
    for one in comparison.configurations:
        run = next((run for run in one.runs if run.graph), None)
        if run is not None:
            found.append(("" if comparison.single else one.label, run))
    if not found:
        return None
    return draw([(title, run.graph or {}) for title, run in found[:MOST]])


def draw(graphs: Sequence[tuple[str, dict[str, Any]]]) -> Figure:
    """Graphs (``credit.snapshot`` says what they hold) under titles, side by side."""
    figure, grid = axes_grid(1, len(graphs), width=6.2 if len(graphs) == 1 else 4.4, height=4.4)
    for axes, (title, graph) in zip(grid[0], graphs):
        _draw_one(figure, axes, graph)
        told = f"iteration {graph['iteration']}, {graph['episodes']} rollouts, {len(graph['nodes'])} states"
        axes.set_title(f"{title}\n{told}".strip())
    return figure


def _draw_one(figure: Figure, axes: Any, graph: dict[str, Any]) -> None:
    places = np.array([node[:2] for node in graph["nodes"]])
    distances = np.array([np.nan if node[2] is None else node[2] for node in graph["nodes"]], float)
    sources, targets, counts = np.array(graph["edges"], int).reshape(-1, 3).T
    succeeds = targets < 0
    success = _beside(places, places[sources[succeeds]]) if succeeds.any() else None

    ends = places[targets]
    if success is not None:
        ends[succeeds] = success
    widths = 0.4 + 1.6 * counts / counts.max()
    for chosen, colour, style in ((~succeeds, "#9a9a9a", "solid"), (succeeds, "#D55E00", "dashed")):
        lines = np.stack([places[sources[chosen]], ends[chosen]], axis=1)
        axes.add_collection(
            LineCollection(list(lines), colors=colour, linewidths=widths[chosen], linestyles=style, zorder=1)
        )
    lost = np.isnan(distances)
    axes.scatter(*places[lost].T, s=16, facecolors="white", edgecolors="#777777", zorder=2, label="no path")
    if not lost.all():
        drawn = axes.scatter(*places[~lost].T, c=distances[~lost], cmap=COLOURS, s=24, zorder=3)
        figure.colorbar(drawn, ax=axes, label="shortest way to success (chunks)", shrink=0.85)
    start = places[graph["start"]]
    axes.scatter(
        *start, s=110, facecolors="none", edgecolors="black", linewidths=1.6, zorder=4, label="start"
    )
    if success is not None:
        axes.scatter(*success, marker="*", s=260, color="#D55E00", zorder=5, label="SUCCESS")
    axes.autoscale_view()
    axes.margins(0.06)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"{graph['axes'][0]} (m)")
    axes.set_ylabel(f"{graph['axes'][1]} (m)")
    axes.legend(loc="best")


def _beside(places: Any, before: Any) -> Any:
    """Where SUCCESS is drawn, which has no place of its own: beyond the states that led to it, seen from the
    middle of all."""
    middle, near = places.mean(axis=0), before.mean(axis=0)
    span = max(float(np.ptp(places, axis=0).max()), 1e-3)
    direction = near - middle
    length = float(np.linalg.norm(direction))
    direction = direction / length if length > 1e-6 else np.array([0.0, 1.0])
    return near + 0.18 * span * direction
