"""Draw docs/architecture.svg, the flow of one iteration: ``python scripts/draw_architecture.py [FILE]``.

The same bytes on every machine with the same matplotlib: no date, a fixed salt for the names of shapes, and
text as text, which the reader's browser sets.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

FILE = Path(__file__).parents[1] / "docs" / "architecture.svg"
WIDTH, HEIGHT = 11.0, 6.4
BLUE, GREEN, ORANGE, GREY = "#dbe9f6", "#e2f0d9", "#fde9d0", "#eeeeee"

Box = tuple[float, float, float, float, str, str, str]
"""Left, bottom, width, height, colour, title, text."""
Arrow = tuple[tuple[float, float], tuple[float, float], str, tuple[float, float]]
"""From, to, label, where the label stands (left, bottom)."""

BOXES: dict[str, Box] = {
    "workers": (0.5, 3.9, 2.3, 1.3, GREEN, "worker processes", "MuJoCo, images\n(CPU, never torch)"),
    "actor": (4.2, 3.9, 2.3, 1.3, BLUE, "actor", "one batched forward of the\nbehaviour policy"),
    "replay": (7.9, 3.9, 2.3, 1.3, ORANGE, "replay", "a ring of segments;\nthe oldest leave"),
    "behaviour": (
        4.2,
        1.2,
        2.3,
        1.3,
        BLUE,
        "behaviour policy",
        "snapshot of the learner,\nwith a version",
    ),
    "learner": (7.9, 1.2, 2.3, 1.3, BLUE, "learner", "values, advantages, objective,\none DeepSpeed step"),
    "ranks": (0.5, 1.2, 2.3, 1.3, GREY, "other ranks", "each with all of this,\nand its own experience"),
}
ARROWS: tuple[Arrow, ...] = (
    ((2.85, 4.8), (4.15, 4.8), "2  observations", (2.95, 4.95)),
    ((4.15, 4.3), (2.85, 4.3), "2  actions", (3.0, 4.0)),
    ((6.55, 4.55), (7.85, 4.55), "3  finished\nsegments", (6.65, 4.7)),
    ((9.05, 3.85), (9.05, 2.55), "4  batch of segments", (9.15, 3.1)),
    ((7.85, 1.85), (6.55, 1.85), "5  trained\ntensors", (6.75, 1.98)),
    ((5.35, 2.55), (5.35, 3.85), "acts with", (5.45, 3.1)),
    ((7.85, 1.45), (2.85, 1.45), "gradients, a few statistics", (4.3, 0.6)),
)


def draw(file: Path) -> None:
    with plt.rc_context({"svg.hashsalt": "gipo_vla", "svg.fonttype": "none"}):
        figure = plt.figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.axis("off")
        _rank(axes)
        for box in BOXES.values():
            _box(axes, box)
        for arrow in ARROWS:
            _arrow(axes, arrow)
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None})
        plt.close(figure)


def _rank(axes: Axes) -> None:
    """What one rank owns: everything but the other ranks, below its workers."""
    outline = [(0.2, 6.1), (10.7, 6.1), (10.7, 0.5), (3.9, 0.5), (3.9, 3.5), (0.2, 3.5)]
    axes.add_patch(Polygon(outline, closed=True, fc="white", ec="#888888"))
    axes.text(0.45, 5.7, "one rank", fontsize=12, fontweight="bold")
    axes.text(2.0, 5.7, "1  the simulators step while the learner works through a micro-batch", fontsize=10)


def _box(axes: Axes, box: Box) -> None:
    left, bottom, width, height, colour, title, text = box
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0.04", fc=colour, ec="#444444")
    )
    middle = left + width / 2
    axes.text(middle, bottom + height - 0.3, title, ha="center", va="center", fontsize=11, fontweight="bold")
    axes.text(middle, bottom + 0.45, text, ha="center", va="center", fontsize=9)


def _arrow(axes: Axes, arrow: Arrow) -> None:
    start, end, label, (left, bottom) = arrow
    # Gradients go both ways, around the behaviour policy.
    style, curve = ("<|-|>", "arc3,rad=-0.18") if label.startswith("gradients") else ("-|>", "arc3")
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=style, mutation_scale=14, color="#444444", connectionstyle=curve
        )
    )
    axes.text(left, bottom, label, fontsize=9, va="bottom")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE)
