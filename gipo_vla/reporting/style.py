"""Colours, panels and small drawing helpers that all figures share."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
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
LIMIT: Any = {"color": "#888888", "linewidth": 0.8, "linestyle": "--", "zorder": 0}
"""The line from which data count as stale."""

SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # names of runs are text, whatever they hold
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

    @property
    def members(self) -> Iterator[tuple[str, Configuration]]:
        """Those of all panels."""
        return (member for panel in self.panels for member in panel.members)

    @property
    def names(self) -> list[str]:
        """Names within the panels, over all of them, in order."""
        return list(dict.fromkeys(name for name, _ in self.members))

    def colour(self, name: str) -> Any:
        """Colour of a name: of the palette, or of a scale where there are more names than colours."""
        place, count = self.names.index(name), len(self.names)
        if count <= len(COLOURS):
            return COLOURS[place]
        scale = matplotlib.colormaps["turbo"](0.05 + 0.9 * place / (count - 1))
        hue, lightness, saturation = colorsys.rgb_to_hls(*scale[:3])
        return colorsys.hls_to_rgb(hue, min(lightness, 0.45), saturation)

    def marker(self, name: str) -> str:
        return MARKERS[self.names.index(name) % len(MARKERS)]


def layout(comparison: Comparison) -> Layout:
    """One panel while few configurations are compared, else one for each value of a factor."""
    configurations, factors = comparison.configurations, comparison.factors
    factor = _panel_factor(factors, configurations) if len(configurations) > MOST_IN_ONE_PANEL else None
    if factor is None:
        return Layout((Panel("", tuple((one.label, one) for one in configurations)),))
    values = list(dict.fromkeys(one.values[factor] for one in configurations))
    if all(isinstance(value, (int, float)) for value in values):
        values.sort(key=lambda value: float(value or 0))
    panels = []
    for value in values:
        own = [one for one in configurations if one.values[factor] == value]
        title = show(value) if factor in NAMED_BY_VALUE else f"{factor.rpartition('.')[2]} {show(value)}"
        panels.append(Panel(title, tuple((label(one.values, factors, without=factor), one) for one in own)))
    return Layout(tuple(panels))


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
    return min(fitting, key=lambda key: fitting[key], default=None)


def axes_grid(
    rows: int, columns: int, width: float = 3.4, height: float = 2.5, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes as a (rows, columns) array; drawn without pyplot, so nothing global is left."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=DPI)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def draw_members(
    row: Iterable[Axes], layout: Layout, draw: Callable[[Axes, str, Configuration], bool]
) -> bool:
    """Draw every configuration into the axes of its panel; whether there was anything to draw."""
    drawn = [draw(axes, name, one) for axes, panel in zip(row, layout.panels) for name, one in panel.members]
    return any(drawn)


def thousands(axes: Axes) -> None:
    """Env steps as 50k, 1.5M."""
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.locator_params(axis="x", nbins=5)


def _short(value: float) -> str:
    """Matplotlib's EngFormatter would call a billion G, and a part of an env step m."""
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
    (axes.set_xlim if horizontal else axes.set_ylim)(-0.03, 1.03)


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Rows 0, 1, ... from above, one for each label."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def hide(axes: Iterable[Axes]) -> None:
    """Leave out what a grid has too much."""
    for unused in axes:
        unused.set_visible(False)


def legend(figure: Figure, all_axes: Iterable[Axes], order: Sequence[str] | None = None) -> None:
    """One legend above all axes with every name once; none for a single name.

    Args:
        order: of the names; None: as they were drawn.
    """
    handles: dict[str, Any] = {}
    for axes in all_axes:
        for handle, name in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(name, handle)
    names = [name for name in order or handles if name in handles]
    if len(names) < 2:
        return
    # What fits beside each other: about 14 characters an inch at this size, 4 of them for the line.
    columns = int(figure.get_figwidth() * 14 / (max(map(len, names)) + 6))
    columns = max(1, min(4, len(names), columns))
    figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=columns)
