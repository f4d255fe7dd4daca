"""How often scripted experts succeed: ``python -m gipo_envs.libero.expert_rates SUITE TASK[,TASK...]``.

Training's initial states 0, 1, 2, ... of each task, up to the suite's published step limit. Prints a row of a
table for each task, and one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from gipo_envs.libero import catalogue
from gipo_envs.libero.experts import OBSERVATIONS, make_expert
from gipo_envs.protocol import Environment, EnvironmentSettings
from gipo_envs.registry import make


def attempt(suite: str, environment: Environment, initial_state: int, noise: float = 0.0) -> int | None:
    """Env steps until the expert of the environment's first task succeeds from an initial state; None if it
    does not within the step limit.

    Args:
        environment: of the suite, with the observations that experts read.
        noise: standard deviation of what is added to its actions, as in a recording.
    """
    expert = make_expert(suite, environment.spec.tasks[0])
    rng = np.random.default_rng(initial_state)
    observation = environment.reset(initial_state, 0)
    for step in range(1, environment.spec.step_limit + 1):
        disturbed = expert(observation) + noise * rng.standard_normal(environment.spec.action_size)
        result = environment.step_chunk(disturbed.clip(-1.0, 1.0).astype(np.float32)[None])
        observation = result.observation
        if result.success[0]:
            return step
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m gipo_envs.libero.expert_rates", description=__doc__)
    parser.add_argument("suite", choices=list(catalogue.STEP_LIMITS))
    parser.add_argument("tasks", help="numbers of the suite's tasks, separated by commas")
    parser.add_argument("--states", type=int, default=50, help="initial states of each task")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation on executed actions")
    asked = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for number in asked.tasks.split(","):
        settings = EnvironmentSettings(asked.suite, int(number), OBSERVATIONS, reward="sparse")
        environment = make(settings)
        steps = [attempt(asked.suite, environment, key, asked.noise) for key in range(asked.states)]
        took = [count for count in steps if count is not None]
        rows.append(
            {
                "suite": asked.suite,
                "task": environment.spec.tasks[0],
                "states": asked.states,
                "noise": asked.noise,
                "rate": len(took) / asked.states,
                "median_steps": float(np.median(took)) if took else None,
                "failed": [key for key, count in enumerate(steps) if count is None],
            }
        )
        environment.close()
        print("{suite}  {task}  {rate:.2f}  {median_steps}  {failed}".format(**rows[-1]), flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
