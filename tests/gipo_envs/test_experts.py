"""Scripted experts solve their tasks, within the range of actions, and leave alone what they are given."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gipo_envs import EnvironmentSettings, make, make_spec
from gipo_envs.errors import UserError
from gipo_envs.registry import make_expert

METAWORLD_TASKS = ("button-press-v3", "window-close-v3", "reach-v3", "pick-place-v3")


def succeeds(family: str, task: str, initial_state: int, noise: float = 0.0) -> bool:
    environment = make(EnvironmentSettings(family, task, ("state",)))
    observation = environment.reset(initial_state, 0, end_on_success=False)
    expert, rng = make_expert(family, task), np.random.default_rng(initial_state)
    while True:
        action = expert(observation)
        assert action.dtype == np.float32 and action.shape == (environment.spec.action_size,)
        assert np.abs(action).max() <= 1.0
        disturbed = action + noise * rng.standard_normal(len(action))
        result = environment.step_chunk(disturbed.astype(np.float32)[None])
        observation = result.observation
        if result.success[0] or result.truncated:
            environment.close()
            return bool(result.success[0])


@pytest.mark.parametrize("task", ["reach", "reach-far", "push"])
def test_points_reach_their_goals(task: str) -> None:
    assert all(succeeds("point_reach", task, key, noise=0.2) for key in range(20))


@pytest.mark.parametrize("task", METAWORLD_TASKS)
def test_metaworlds_experts_succeed(task: str) -> None:
    assert all(succeeds("metaworld", task, key, noise=0.1) for key in range(2))


@pytest.mark.medium
def test_every_task_of_metaworld_has_one() -> None:
    tasks = make_spec(EnvironmentSettings("metaworld", "MT50")).tasks
    rates = [np.mean([succeeds("metaworld", task, key) for key in range(2)]) for task in tasks]
    assert len(tasks) == 50 and np.mean(rates) > 0.9


@pytest.mark.parametrize("family, task", [("metaworld", "pick-place-v3"), ("point_reach", "push")])
def test_an_expert_is_a_pure_function_of_the_state(family: str, task: str) -> None:
    environment = make(EnvironmentSettings(family, task, ("state",)))
    observation = environment.reset(3, 0)
    before = observation["state"].copy()
    expert = make_expert(family, task)
    first = expert(observation)
    expert({"state": before + 1})
    assert np.array_equal(expert(observation), first)
    assert np.array_equal(observation["state"], before)


def test_a_family_without_experts_is_refused() -> None:
    with pytest.raises(UserError, match=r"recorded has no scripted experts.*libero_hdf5"):
        make_expert("recorded", "any")


def test_experts_do_without_torch() -> None:
    code = (
        "import sys; from gipo_envs.registry import make_expert; make_expert('metaworld', 'reach-v3');"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
