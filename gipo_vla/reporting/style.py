"""Colours, panels and small drawing helpers that all figures share."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gipo_vla.reporting.comparison import Comparison
from gipo_vla.reporting.grouping import CAPACITY, NAMED_BY_VALUE, Configuration, label, show

# Okabe and Ito's palette without its yellow, which is too faint for lines on white: readable with the
# common colour deficiencies.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 110
MOST_IN_ONE_PANEL = 6
MOST_PANELS = 6

SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Panel:
    """Configurations that are drawn in one set of axes."""

    title: str
    members: tuple[tuple[str, Configuration], ...]
    """(name within the panel, configuration)."""


@dataclass(frozen=True)
class Layout:
    """How configurations are spread over panels and coloured, the same in all figures of a report."""

    panels: tuple[Panel, ...]
    names: tuple[str, ...]
    """Names within the panels, over all of them, in order."""

    def colour(self, name: str) -> Any:
        """Colour of a name: of the palette, or of a scale where there are more names than colours."""
        if len(self.names) <= len(COLOURS):
            return COLOURS[self.names.index(name)]
        scale = matplotlib.colormaps["turbo"](0.05 + 0.9 * self.names.index(name) / (len(self.names) - 1))
        hue, lightness, saturation = colorsys.rgb_to_hls(*scale[:3])
        return colorsys.hls_to_rgb(hue, min(lightness, 0.45), saturation)

    def marker(self, name: str) -> str:
        return MARKERS[self.names.index(name) % len(MARKERS)]


def layout(comparison: Comparison) -> Layout:
    """One panel while few configurations are compared, else one for each value of a factor."""
    configurations = comparison.configurations
    factor = None
    if len(configurations) > MOST_IN_ONE_PANEL:
        factor = _panel_factor(comparison.factors, configurations)
    if factor is None:
        panels: tuple[Panel, ...] = (Panel("", tuple((one.label, one) for one in configurations)),)
    else:
        values = list(dict.fromkeys(one.values[factor] for one in configurations))
        if all(isinstance(value, (int, float)) for value in values):
            values.sort(key=lambda value: float(value or 0))
        panels = tuple(
            Panel(
                show(value) if factor in NAMED_BY_VALUE else f"{factor.rpartition('.')[2]} {show(value)}",
                tuple(
                    (label({k: v for k, v in one.values.items() if k != factor}, comparison.factors), one)
                    for one in configurations
                    if one.values[factor] == value
                ),
            )
            for value in values
        )
    names = tuple(dict.fromkeys(name for panel in panels for name, _ in panel.members))
    return Layout(panels, names)


def _panel_factor(factors: Sequence[str], configurations: Sequence[Configuration]) -> str | None:
    """The capacity where it varies, else the factor with the fewest values, among those that all have."""
    counts = {
        key: len({one.values[key] for one in configurations})
        for key in factors
        if all(key in one.values for one in configurations)
    }
    fitting = {key: count for key, count in counts.items() if 2 <= count <= MOST_PANELS and len(factors) > 1}
    if CAPACITY in fitting:
        return CAPACITY
    return min(fitting, key=lambda key: fitting[key]) if fitting else None


def axes_grid(
    rows: int, columns: int, width: float = 3.4, height: float = 2.5, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes as a (rows, columns) array; drawn without pyplot, so nothing global is left."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=DPI)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def thousands(axes: Axes) -> None:
    """Env steps as 50k, 1.5M."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.locator_params(axis="x", nbins=5)


def _short(value: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def draw_floor(line: Callable[..., Any], floor: float | None) -> None:
    """Mark the numerical floor of |log rho|, below which nothing is staleness.

    Args:
        line: ``axhline`` or ``axvline`` of the axes.
        floor: None: the runs did not measure it.
    """
    if floor is not None:
        line(floor, color="#D55E00", linewidth=1.2, linestyle=":", zorder=1)


def rate(axes: Axes, horizontal: bool = False) -> None:
    """Limits of a share, with room for lines at 0 and 1."""
    if horizontal:
        axes.set_xlim(-0.03, 1.03)
    else:
        axes.set_ylim(-0.03, 1.03)


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Rows 0, 1, ... from above, one for each label."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def legend(figure: Figure, all_axes: Iterable[Axes], order: Sequence[str] | None = None) -> None:
    """One legend above all axes with every name once; none for a single name.

    Args:
        order: of the names; None: as they were drawn.
    """
    handles: dict[str, Artist] = {}
    for axes in all_axes:
        for handle, name in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(name, handle)
    names = [name for name in order if name in handles] if order else list(handles)
    if len(names) < 2:
        return
    longest = max(map(len, names))
    # What fits beside each other: about 14 characters an inch at this size, 4 of them for the line.
    columns = max(1, min(4, len(names), int(figure.get_figwidth() * 14 / (longest + 6))))
    figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=columns)
