"""The picture of a graph of states (credit=graph): where the hand was, and how far that is from success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.style import axes_grid

MOST = 4
"""Graphs side by side."""


def state_graphs(comparison: Comparison) -> Figure | None:
    """A late graph of each configuration's first run that has one; None where no run has."""
    found = []
    for one in comparison.configurations:
        graphs = [run.graph for run in one.runs if run.graph]
        found += [("" if comparison.single else one.label, graph) for graph in graphs[:1]]
    return draw(found[:MOST]) if found else None


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
    distances = np.array([node[2] for node in graph["nodes"]], float)  # NaN: no path
    sources, targets, counts = np.array(graph["edges"], int).reshape(-1, 3).T
    succeeds = targets < 0
    ends = places[targets]
    if succeeds.any():
        ends[succeeds] = _beside(places, places[sources[succeeds]])
    widths = 0.4 + 1.6 * counts / counts.max()
    for chosen, colour, style in ((~succeeds, "#9a9a9a", "solid"), (succeeds, "#D55E00", "dashed")):
        lines = list(np.stack([places[sources[chosen]], ends[chosen]], axis=1))
        look: dict[str, Any] = {"colors": colour, "linewidths": widths[chosen], "linestyles": style}
        axes.add_collection(LineCollection(lines, zorder=1, **look))
    lost = np.isnan(distances)
    axes.scatter(*places[lost].T, s=16, facecolors="white", edgecolors="#777777", zorder=2, label="no path")
    if not lost.all():
        drawn = axes.scatter(*places[~lost].T, c=distances[~lost], cmap="viridis_r", s=24, zorder=3)
        figure.colorbar(drawn, ax=axes, label="shortest way to success (chunks)", shrink=0.85)
    ring = {"s": 110, "facecolors": "none", "edgecolors": "black", "linewidths": 1.6}
    axes.scatter(*places[graph["start"]], zorder=4, label="start", **ring)
    if succeeds.any():
        axes.scatter(*ends[succeeds][0], marker="*", s=260, color="#D55E00", zorder=5, label="SUCCESS")
    axes.autoscale_view()
    axes.margins(0.06)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"{graph['axes'][0]} (m)")
    axes.set_ylabel(f"{graph['axes'][1]} (m)")
    axes.legend(loc="best")


def _beside(places: Any, before: Any) -> Any:
    """Where SUCCESS is drawn, which has no place of its own: beyond the states that led to it, seen from the
    middle of all."""
    direction = before.mean(axis=0) - places.mean(axis=0)
    length = float(np.linalg.norm(direction))
    direction = direction / length if length > 1e-6 else np.array([0.0, 1.0])
    return before.mean(axis=0) + 0.18 * max(float(np.ptp(places, axis=0).max()), 1e-3) * direction
