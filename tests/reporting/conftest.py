"""Run folders with made-up numbers, so that every figure and table has something to show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

RunMaker = Callable[..., Path]

OBJECTIVES: dict[str, dict[str, Any]] = {
    "gipo": {"name": "gipo", "sigma": 1.0, "sigma_neg_ratio": 0.5},
    "ppo": {"name": "ppo", "clip_low": 0.2, "clip_high": 0.2},
    "sapo": {"name": "sapo", "tau_pos": 1.0, "tau_neg": 2.0},
}


def settings(objective: str, task: str | list[str], seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config.yaml; ``changes`` have dotted keys."""
    made: dict[str, Any] = {
        "experiment": "made_up",
        "iterations": 20,
        "env": {"family": "made_up", "task": task, "reward_scale": 0.1},
        "objective": dict(OBJECTIVES[objective]),
        "replay": {"capacity": 1000, "segment_length": 8},
        "eval": {"mode": "greedy"},
        "telemetry": {"wandb": "off"},
        "seed": seed,
        "run_dir": "somewhere",
    }
    for key, value in changes.items():
        section = made
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    return made


def metrics(
    iterations: int, success: float, seed: int, lag: float, tasks: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl: success rises to ``success``, lag to ``lag``."""
    rng = np.random.default_rng(seed)
    rows = []
    for iteration in range(1, iterations + 1):
        done = iteration / iterations
        reached = success * (1 - math.exp(-4 * done)) / (1 - math.exp(-4))
        spread = 0.02 * lag * min(1.0, 2 * done) + 0.3 + 0.02 * rng.random()
        row: dict[str, Any] = {
            "iteration": iteration,
            "env_steps": 100 * iteration,
            "updates": 4 * iteration,
            "episodes": 5,
            "success_once_recent": None if iteration == 1 else reached,
            "staleness/lag_iterations_mean": lag * min(1.0, 2 * done),
            "staleness/lag_iterations_max": 2 * lag,
            "staleness/lag_mean": 4 * lag * min(1.0, 2 * done),
            "staleness/lag_p95": 7.5 * lag,
            "staleness/lag_max": 8 * lag,
            "staleness/weight_mean": 0.8,
            "staleness/approximate_kl": 0.1,
            "staleness/gradient_share_old": 0.5,
            "policy/entropy": 5 - 2 * done,
            "value/explained_variance": 0.5 + 0.4 * rng.random(),
            "gradient_norm/policy": 0.3 + 0.1 * rng.random(),
            "loss/value": 0.02 * rng.random(),
        }
        for suffix, factor in (("_new", 0.5), ("", 1.0), ("_old", 1.3)):
            row |= {
                f"staleness/p95_abs_log_ratio{suffix}": spread * factor,
                f"staleness/effective_sample_size{suffix}": 1 / (1 + spread * factor),
                f"staleness/zero_fraction{suffix}": 0.01 * factor,
                f"staleness/damped_fraction{suffix}": 0.1 * factor,
            }
        mean_lag = row["staleness/lag_mean"]
        row |= {f"staleness/lag_p{10 * decile}": mean_lag * decile / 5 for decile in range(1, 10)}
        for age in range(1, 6):
            row |= {
                f"staleness/lag_mean_age{age}": mean_lag * (2 * age - 1) / 5,
                f"staleness/zero_fraction_age{age}": 0.004 * age,
                f"staleness/damped_fraction_age{age}": 0.04 * age,
                f"staleness/p95_abs_log_ratio_age{age}": spread * (0.5 + 0.2 * age),
            }
        row |= {f"task/{task}/success_once_recent": reached for task in tasks}
        rows.append(row)
    return rows


def evaluation(task_success: Mapping[str, float]) -> dict[str, Any]:
    """evaluation.json."""

    def rates(success: float) -> dict[str, Any]:
        return {
            "episodes": 50,
            "success_once": success,
            "success_once_interval_95": [max(0.0, success - 0.1), min(1.0, success + 0.1)],
            "success_at_end": 0.9 * success,
            "mean_return": 100 * success,
        }

    mean = sum(task_success.values()) / len(task_success)
    tasks = {task: rates(value) for task, value in task_success.items()}
    return {"mode": "greedy", **rates(mean), "tasks": tasks, "sampled": {**rates(0.8 * mean), "tasks": tasks}}


@pytest.fixture
def make_run() -> RunMaker:
    """Writes a run folder: ``make_run(folder, objective="ppo", seed=1, success=0.4, ...)``."""

    def make(
        folder: Path,
        objective: str = "gipo",
        task: str | list[str] = "reach",
        seed: int = 0,
        success: float = 0.8,
        lag: float = 5.0,
        iterations: int = 20,
        changes: Mapping[str, Any] | None = None,
        evaluated: bool = True,
    ) -> Path:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings(objective, task, seed, changes or {})))
        tasks = tuple(task) if isinstance(task, list) else ()
        rows = metrics(iterations, success, seed, lag, tasks)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if evaluated:
            names = tasks or (str(task),)
            text = json.dumps(evaluation(dict.fromkeys(names, success)))
            (folder / "evaluation.json").write_text(text)
        return folder

    return make
