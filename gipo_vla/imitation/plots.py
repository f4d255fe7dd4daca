"""The loss curve of a cloning run as a PNG, from its metrics alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]


def loss_curve(path: Path, title: str, metrics: Sequence[Row]) -> None:
    """Loss and share of right tokens over updates, in training and on held-out demonstrations.

    Args:
        metrics: rows of metrics.jsonl.
    """
    figure, (losses, accuracies) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, layout="constrained")
    for axes, name, label in (
        (losses, "loss", "-log p (nats a token)"),
        (accuracies, "accuracy", "likeliest token is the expert's"),
    ):
        for of, style, what in (
            ("train", "-", "training"),
            ("validation", "--", "held-out demonstrations"),
        ):
            points = [(row["updates"], row[f"{name}/{of}"]) for row in metrics if row.get(f"{name}/{of}")]
            if points:
                axes.plot(*zip(*points), style, label=what)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    losses.legend(fontsize=8)
    losses.set_title(title, fontsize=10)
    accuracies.set_xlabel("updates")
    figure.savefig(path, dpi=110)
    plt.close(figure)
