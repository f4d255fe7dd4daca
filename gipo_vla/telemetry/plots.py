"""The curves of one run as a PNG, from its metrics alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]
INTERVAL = "success_once_interval_95"


def learning_curve(
    path: Path, title: str, metrics: Sequence[Row], evaluations: Sequence[Row], final: Row | None = None
) -> None:
    """Success over env steps above the staleness of what was learned from.

    Args:
        metrics: rows of metrics.jsonl.
        evaluations: rows of evaluations.jsonl (``env_steps``, ``success_once``, ``interval``).
        final: the same of the final evaluation.
    """

    def line(axes: Axes, metric: str, colour: str, label: str, style: str = "-") -> None:
        known = [(row["env_steps"], row[metric]) for row in metrics if row.get(metric) is not None]
        steps, values = np.array(known, float).reshape(-1, 2).T
        axes.plot(steps, values, style, color=colour, label=label)

    figure = Figure(figsize=(7, 6), layout="constrained")
    success, staleness = figure.subplots(2, 1, sharex=True)
    line(success, "success_once_recent", "tab:gray", "training episodes, sampled (last 100)")
    points = [row for row in (*evaluations, *([final] if final else [])) if row.get(INTERVAL)]
    if points:
        rates = np.array([row["success_once"] for row in points])
        low, high = np.array([row[INTERVAL] for row in points]).T
        success.errorbar(
            [row["env_steps"] for row in points],
            rates,
            # Rounded ends of an interval may miss the rate by 1e-5; a length must not be negative.
            yerr=np.maximum([rates - low, high - rates], 0),
            fmt="o-",
            capsize=3,
            color="tab:blue",
            label=f"held-out initial states, {points[-1].get('mode')} (95 %)",
        )
    success.set(ylabel="success once", ylim=(-0.03, 1.03))
    success.legend(loc="best", fontsize=8)
    success.set_title(title, fontsize=10)

    line(staleness, "staleness/p95_abs_log_ratio", "tab:red", "P95 |log ratio|")
    floors = [floor for row in metrics if (floor := row.get("staleness/numerical_floor_p99")) is not None]
    if floors:
        known = f"numerical floor of |log ratio| ({floors[-1]:.0e})"
        staleness.axhline(floors[-1], color="tab:gray", linestyle="--", linewidth=1, label=known)
    line(staleness, "staleness/effective_sample_size", "tab:green", "effective sample size (share)")
    staleness.set(ylabel="staleness", xlabel="env steps")
    lag = staleness.twinx()
    line(lag, "staleness/lag_iterations_mean", "tab:purple", "mean lag (iterations)", ":")
    lag.set_ylabel("iterations")
    lines = [*staleness.get_lines(), *lag.get_lines()]
    staleness.legend(lines, [str(one.get_label()) for one in lines], loc="best", fontsize=8)
    for axes in (staleness, lag):
        axes.set_ylim(bottom=0)
    for axes in (success, staleness):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def loss_curve(path: Path, title: str, metrics: Sequence[Row]) -> None:
    """Loss and share of right tokens over updates, in training and on held-out demonstrations.

    Args:
        metrics: rows of metrics.jsonl.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True)
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
