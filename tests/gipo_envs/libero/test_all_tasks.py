"""All 40 tasks of the four suites of ten; 90 more are checked as data (test_catalogue)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gipo_envs import EVALUATION_KEYS_START, CameraSettings, EnvironmentSettings, make
from gipo_envs.libero import simulations
from gipo_envs.libero.catalogue import STEP_LIMITS
from gipo_envs.libero.environment import LiberoEnvironment
from tests.gipo_envs.libero import goals

SUITES = [suite for suite in STEP_LIMITS if suite != "libero_90"]
TASKS = [(suite, number) for suite in SUITES for number in range(10)]


def _make(suite: str, number: int) -> LiberoEnvironment:
    camera = CameraSettings(names=("agentview", "wrist"), height=32, width=32)
    environment = make(
        EnvironmentSettings(suite, number, ("images", "proprio", "state"), camera, reward="sparse")
    )
    assert isinstance(environment, LiberoEnvironment)
    return environment


@pytest.fixture(autouse=True)
def _one_task_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulations, "TASKS_KEPT", 1)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("suite", "number"),
    # The first two of each suite in every run of the tests, the others in the long one.
    [pytest.param(*task, marks=() if task[1] < 2 else pytest.mark.slow) for task in TASKS],
)
def test_a_task(libero_assets: Path, pictures: None, suite: str, number: int) -> None:
    """Resets, settles and steps; begins unsolved; a state that fulfils the goal is a success."""
    environment = _make(suite, number)
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 7)).astype(np.float32)
    for key in (0, EVALUATION_KEYS_START):
        observation = environment.reset(key, seed=0)
        assert not environment.simulation.is_solved()
        assert observation["images"].std() > 5
        hands = observation["proprio"][:3]
        result = environment.step_chunk(actions)
        assert result.executed == 8
        assert not result.success.any()
        assert all(np.isfinite(result.observation[name]).all() for name in ("proprio", "state"))
        assert np.linalg.norm(result.observation["proprio"][:3] - hands) > 0.001
    environment.reset(EVALUATION_KEYS_START, seed=0)
    goals.fulfil(environment.simulation, environment.episode)
    assert environment.simulation.is_solved()
    environment.close()


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "number"), TASKS)
def test_no_initial_state_is_a_success(libero_assets: Path, suite: str, number: int) -> None:
    """All 50 published states, and as many of the task's sampler."""
    settings = EnvironmentSettings(suite, number, ("state",), reward="sparse")
    environment = make(settings)
    assert isinstance(environment, LiberoEnvironment)
    for key in (*range(50), *range(EVALUATION_KEYS_START, EVALUATION_KEYS_START + 50)):
        environment.reset(key, seed=key)
        assert not environment.simulation.is_solved(), key
    environment.close()
