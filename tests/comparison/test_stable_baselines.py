"""The script that trains others' algorithms gives them the same simulator, and judges them alike."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import gipo_envs
from gipo_envs import EVALUATION_KEYS_START, Environment, EnvironmentSettings
from tests.docs.pages import ROOT

SCRIPT = ROOT / "scripts" / "comparison" / "stable_baselines.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stable_baselines", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment() -> Environment:
    return gipo_envs.make(EnvironmentSettings("point_reach", "reach", step_limit=8, action_repeat=2))


def test_an_episode_by_gymnasium_is_the_projects_own(script: ModuleType, environment: Environment) -> None:
    wrapped = script.GymEnvironment(environment, seed=3)
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 2)).astype(np.float32)
    state, _ = wrapped.reset()
    episode = [wrapped.step(action) for action in actions]
    key = int(np.random.default_rng(3).integers(*environment.spec.training_keys))
    assert key < EVALUATION_KEYS_START
    np.testing.assert_array_equal(state, environment.reset(key, seed=0)["state"])
    for action, (state, reward, terminated, truncated, _) in zip(actions, episode):
        result = environment.step_chunk(action[None])
        np.testing.assert_array_equal(state, result.observation["state"])
        assert (reward, terminated, truncated) == (result.rewards[0], False, result.truncated)
    assert [step[3] for step in episode] == [False, False, False, True]


def test_evaluation_is_on_the_held_out_states(script: ModuleType, environment: Environment) -> None:
    seen: list[np.ndarray] = []

    def act(state: np.ndarray, greedy: bool) -> np.ndarray:
        assert greedy
        seen.append(state)
        return np.zeros(2, np.float32)

    rates = script.evaluate(environment, act, 3, greedy=True)
    assert rates["episodes"] == 3 and 0 <= rates["success_at_end"] <= rates["success_once"]
    firsts = [environment.reset(EVALUATION_KEYS_START + index, seed=index)["state"] for index in range(3)]
    np.testing.assert_array_equal(seen[::4], firsts)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "sac"])
def test_both_algorithms_train(
    script: ModuleType, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("stable_baselines3")
    out = tmp_path / "out.json"
    arguments = f"x --algorithm {algorithm} --task reach-v3 --env-steps 600 --episodes 1 --out {out}"
    monkeypatch.setattr("sys.argv", arguments.split())
    script.main()
    made = json.loads(out.read_text())
    assert made["greedy"]["episodes"] == made["episodes"] == 1
