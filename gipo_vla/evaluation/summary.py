"""Success rates with intervals, as evaluation.json and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import scipy  # its parts load when first used
from rich.table import Table

from gipo_envs import EnvironmentSpec
from gipo_vla.evaluation.episodes import EpisodeResult
from gipo_vla.telemetry import console


def rates(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Rates of some episodes, with the 95 % Wilson interval of ``success_once``."""
    count = len(results)
    successes = sum(result.success_once for result in results)
    interval = scipy.stats.binomtest(successes, count).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "episodes": count,
        "success_once": successes / count,
        "success_once_interval_95": [round(float(interval.low), 4), round(float(interval.high), 4)],
        "success_at_end": sum(result.success_at_end for result in results) / count,
        "mean_return": sum(result.episode_return for result in results) / count,
        "mean_env_steps": sum(result.env_steps for result in results) / count,
    }


def by_task(spec: EnvironmentSpec, results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Rates over all tasks and, under ``tasks``, of each."""
    return rates(results) | {
        "tasks": {
            name: rates(own)
            for index, name in enumerate(spec.tasks)
            if (own := [result for result in results if result.plan.task == index])
        }
    }


def evaluation_json(
    spec: EnvironmentSpec, headline: str, results: Mapping[str, Sequence[EpisodeResult]]
) -> dict[str, Any]:
    """evaluation.json: the headline mode on top, every other mode under its name."""
    other = {mode: by_task(spec, own) for mode, own in results.items() if mode != headline}
    return {"mode": headline} | by_task(spec, results[headline]) | other


def table(evaluation: dict[str, Any]) -> Table:
    """evaluation.json for people."""
    rows = []
    for mode in dict.fromkeys((evaluation["mode"], "greedy", "sampled")):
        own = evaluation if mode == evaluation["mode"] else evaluation.get(mode)
        if own is None:
            continue
        tasks = dict(own["tasks"])
        for name, row in (tasks | {"all": own} if len(tasks) > 1 else tasks).items():
            low, high = row["success_once_interval_95"]
            rows.append(
                (
                    name,
                    mode,
                    str(row["episodes"]),
                    f"{row['success_once']:.2f}",
                    f"{low:.2f} .. {high:.2f}",
                    f"{row['success_at_end']:.2f}",
                    f"{row['mean_return']:.1f}",
                )
            )
    columns = ("task", "mode", "episodes", "success once", "95 %", "success at end", "return")
    return console.table("Success on held-out initial states", columns, rows, left=("task", "mode"))
