"""The curves of one run as a PNG, from its metrics alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]


def learning_curve(
    path: Path,
    title: str,
    metrics: Sequence[Row],
    evaluations: Sequence[Row],
    final: Row | None = None,
) -> None:
    """Success over env steps above the staleness of what was learned from.

    Args:
        metrics: rows of metrics.jsonl.
        evaluations: rows of evaluations.jsonl (``env_steps``, ``success_once``, ``interval``).
        final: the same of the final evaluation.
    """
    figure, (success, staleness) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    steps, recent = _column(metrics, "success_once_recent")
    success.plot(steps, recent, color="tab:gray", label="training episodes, sampled (last 100)")
    points = [*evaluations, *([final] if final else [])]
    if points:
        x = [row["env_steps"] for row in points]
        y = [row["success_once"] for row in points]
        low = [row["success_once"] - row["success_once_interval_95"][0] for row in points]
        high = [row["success_once_interval_95"][1] - row["success_once"] for row in points]
        success.errorbar(
            x,
            y,
            yerr=[low, high],
            fmt="o-",
            capsize=3,
            color="tab:blue",
            label=f"held-out initial states, {points[-1]['mode']} (95 %)",
        )
    success.set_ylabel("success once")
    success.set_ylim(-0.03, 1.03)
    success.legend(loc="best", fontsize=8)
    success.grid(alpha=0.3)
    success.set_title(title, fontsize=10)

    steps, spread = _column(metrics, "staleness/p95_abs_log_ratio")
    staleness.plot(steps, spread, color="tab:red", label="P95 |log ratio|")
    _, floor = _column(metrics, "staleness/numerical_floor_p99")
    if floor:
        known = f"numerical floor of |log ratio| ({floor[-1]:.0e})"
        staleness.axhline(floor[-1], color="tab:gray", linestyle="--", linewidth=1, label=known)
    steps, size = _column(metrics, "staleness/effective_sample_size")
    staleness.plot(steps, size, color="tab:green", label="effective sample size (share)")
    staleness.set_ylabel("staleness")
    staleness.set_ylim(bottom=0)
    staleness.set_xlabel("env steps")
    lag = staleness.twinx()
    steps, lags = _column(metrics, "staleness/lag_iterations_mean")
    lag.plot(steps, lags, color="tab:purple", linestyle=":", label="mean lag (iterations)")
    lag.set_ylabel("iterations")
    lag.set_ylim(bottom=0)
    lines = [*staleness.get_lines(), *lag.get_lines()]
    staleness.legend(lines, [str(line.get_label()) for line in lines], loc="best", fontsize=8)
    staleness.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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


def _column(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    pairs = [(row["env_steps"], row[name]) for row in rows if row.get(name) is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]
