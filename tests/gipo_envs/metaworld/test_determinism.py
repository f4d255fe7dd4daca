"""Same (task, initial state, seed, actions), same bits: whatever came before, and in any process."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gipo_envs import EVALUATION_KEYS_START, EnvironmentSettings, make
from gipo_envs.metaworld.simulation import TaskSimulation
from gipo_envs.metaworld.tasks import MT50

PROGRAM = Path(__file__).with_name("rollout_digests.py")


def _digests_of_another_process(tasks: list[str]) -> dict[str, str]:
    result = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(tasks)],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    digests: dict[str, str] = json.loads(result.stdout)
    return digests


@pytest.mark.slow
def test_another_process_and_another_history() -> None:
    """All 50 tasks, in opposite orders."""
    rollout_digests = runpy.run_path(str(PROGRAM))["rollout_digests"]
    here = rollout_digests(list(MT50))
    assert len(set(here.values())) == 50
    assert _digests_of_another_process(list(MT50)[::-1]) == here


@pytest.mark.parametrize("name", MT50)
def test_initial_states(name: str) -> None:
    """Keys are drawn from the task's own space, alike at each time, and differ."""
    simulation = TaskSimulation(name)
    space = simulation._environment._random_reset_space
    vectors = []
    for key in (0, 1, 2, EVALUATION_KEYS_START, EVALUATION_KEYS_START + 1, 0):
        simulation.reset(key)
        vectors.append(simulation.rand_vec)
        assert (vectors[-1] >= space.low).all()
        assert (vectors[-1] <= space.high).all()
    np.testing.assert_array_equal(vectors[0], vectors[-1])
    assert len({vector.tobytes() for vector in vectors}) == 5


@pytest.mark.parametrize("name", ["push-v3", "assembly-v3", "coffee-pull-v3"])
def test_objects_start_away_from_goals(name: str) -> None:
    """The tasks' own rejections are honoured (metaworld loops for ever on a state that breaks them)."""
    least = {"push-v3": 0.15, "assembly-v3": 0.1, "coffee-pull-v3": 0.15}[name]
    simulation = TaskSimulation(name)
    for key in range(60):
        simulation.reset(key)
        vector = simulation.rand_vec
        assert np.linalg.norm(vector[:2] - vector[3:5]) >= least


def test_two_environments_of_one_task_do_not_meddle() -> None:
    """They take turns with one MuJoCo model."""
    settings = EnvironmentSettings(family="metaworld", task="button-press-v3")
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 3, 4)).astype(np.float32)
    alone = make(settings)
    expected = []
    for key in (1, 2):
        alone.reset(key, seed=0)
        expected.append([alone.step_chunk(chunk) for chunk in actions])
    pair = [make(settings), make(settings)]
    for environment, key in zip(pair, (1, 2)):
        environment.reset(key, seed=0)
    for index, chunk in enumerate(actions):
        for environment, results in zip(pair, expected):
            result = environment.step_chunk(chunk)
            np.testing.assert_array_equal(result.observation["state"], results[index].observation["state"])
            np.testing.assert_array_equal(result.rewards, results[index].rewards)


def test_proprioception() -> None:
    settings = EnvironmentSettings(family="metaworld", task="reach-v3", observations=("state", "proprio"))
    environment = make(settings)
    first = environment.reset(0, seed=0)
    closing = np.array([[0.5, 0.0, 0.0, 1.0]] * 10, np.float32)
    last = environment.step_chunk(closing).observation
    for observation in (first, last):
        np.testing.assert_array_equal(observation["proprio"], observation["state"][:4])
    assert last["proprio"][0] > first["proprio"][0] + 0.02  # to the right
    assert last["proprio"][3] < first["proprio"][3] - 0.1  # less open


def test_experts_succeed_on_what_is_observed(make_expert: Callable) -> None:
    """The protocol's float32 observations are enough to act on; sparse episodes end with a reward of 1."""
    tasks = ("button-press-v3", "pick-place-v3", "door-open-v3")
    environment = make(EnvironmentSettings(family="metaworld", task=tasks, reward="sparse"))
    for index, name in enumerate(tasks):
        expert = make_expert(name)
        observation = environment.reset(EVALUATION_KEYS_START, seed=0, task=index)
        while True:
            result = environment.step_chunk(expert(observation["state"])[None])
            observation = result.observation
            if result.terminated or result.truncated:
                break
        assert result.terminated, name
        assert result.rewards.tolist() == [1.0]
