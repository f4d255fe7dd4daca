"""Landmarks: what credits compare states by. LIBERO's are in tests/gipo_envs/libero/test_landmarks.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gipo_envs import Environment, EnvironmentSettings, make, make_spec

Make = Callable[..., Environment]
ASKED = ("state", "landmarks")


def _actions(environment: Environment, count: int) -> np.ndarray:
    shape = (count, environment.spec.action_size)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def test_they_are_observed_where_asked_for_and_change_nothing_else(make_solvable: Make) -> None:
    plain, asked = make_solvable(), make_solvable(observations=ASKED)
    assert "landmarks" not in plain.spec.observation and plain.spec.landmarks == asked.spec.landmarks
    first, second = plain.reset(3, seed=0), asked.reset(3, seed=0)
    for action in _actions(plain, 6):
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])
        assert second["landmarks"].dtype == np.float32
        assert second["landmarks"].shape == (len(asked.spec.landmarks),)
        first, second = (env.step_chunk(action[None]).observation for env in (plain, asked))


def test_they_are_the_same_after_a_restore(make_solvable: Make) -> None:
    stepped, restored = make_solvable(observations=ASKED), make_solvable(observations=ASKED)
    actions = _actions(stepped, 12)
    stepped.reset(5, seed=0)
    expected = stepped.step_chunk(actions).observation["landmarks"]
    restored.reset(99, seed=0)
    restored.step_chunk(actions[:3])
    restored.reset(5, seed=0)
    restored.replay(actions)
    np.testing.assert_array_equal(restored.observe()["landmarks"], expected)


@pytest.mark.parametrize("task", ["button-press-v3", "stick-push-v3"])
def test_metaworlds_are_metres(task: str) -> None:
    environment = make(EnvironmentSettings("metaworld", task, ASKED))
    names = [landmark.name for landmark in environment.spec.landmarks]
    environment.reset(1, seed=0)
    observation = environment.step_chunk(_actions(environment, 5)).observation
    state, found = observation["state"], dict(zip(names, observation["landmarks"]))
    np.testing.assert_array_equal([found[f"hand {axis}"] for axis in "xyz"], state[:3])
    np.testing.assert_array_equal([found[f"object {axis}"] for axis in "xyz"], state[4:7])
    np.testing.assert_array_equal([found[f"goal {axis}"] for axis in "xyz"], state[36:])
    has_second = task == "stick-push-v3"
    assert any(found[f"second object {axis}"] for axis in "xyz") == has_second
    assert found["opening"] == pytest.approx(0.1 * state[3])


def test_point_reachs_square_is_twenty_centimetres_wide() -> None:
    environment = make(EnvironmentSettings("point_reach", "push", ASKED))
    observation = environment.reset(0, seed=0)
    np.testing.assert_allclose(observation["landmarks"], 0.1 * observation["state"][:6], rtol=1e-6)


def test_a_spec_names_them_without_a_simulator() -> None:
    settings = EnvironmentSettings("metaworld", "reach-v3")
    assert len(make_spec(settings).landmarks) == 13
    asked = make_spec(replace(settings, observations=ASKED))
    assert asked.observation["landmarks"].shape == (13,)
