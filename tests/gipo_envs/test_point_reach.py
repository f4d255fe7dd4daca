"""The environment without MuJoCo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_envs import CameraSettings, EnvironmentSettings, make
from gipo_envs.point_reach import GOAL_RADIUS

TASKS = ("reach", "reach-far", "push")
SETTINGS = EnvironmentSettings(family="point_reach", task=TASKS)


@pytest.mark.parametrize("task", range(3))
def test_solvable_from_every_state(task: int) -> None:
    environment = make(SETTINGS)
    for key in range(50):
        observation = environment.reset(key, seed=0, task=task)
        returned = 0.0
        while True:
            state = observation["state"]
            far = TASKS[task] == "push" and np.linalg.norm(state[6:8]) > 0.15
            action = np.clip((state[6:8] if far else state[8:10]) / 0.15, -1, 1)
            result = environment.step_chunk(action[None])
            observation, returned = result.observation, returned + float(result.rewards[0])
            if result.truncated:
                break
        assert result.success_at_end, key
        assert returned > 10


@pytest.mark.parametrize("task", range(3))
def test_states(task: int) -> None:
    environment = make(SETTINGS)
    for key in range(200):
        state = environment.reset(key, seed=0, task=task)["state"]
        assert (np.abs(state[:6]) <= 1).all()
        assert np.linalg.norm(state[8:10]) > 2 * GOAL_RADIUS  # nothing is solved by doing nothing
        np.testing.assert_allclose(state[6:8], state[2:4] - state[0:2], atol=1e-6)
        np.testing.assert_allclose(state[8:10], state[4:6] - state[2:4], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    key=st.integers(0, 2**40),
    task=st.integers(0, 2),
    cuts=st.lists(st.integers(1, 39), max_size=6, unique=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_chunks_make_the_same_episode(key: int, task: int, cuts: list[int], seed: int) -> None:
    environment = make(SETTINGS)
    actions = np.random.default_rng(seed).uniform(-1.5, 1.5, (40, 2)).astype(np.float32)
    environment.reset(key, seed=0, task=task)
    whole = environment.step_chunk(actions)
    environment.reset(key, seed=0, task=task)
    parts = [environment.step_chunk(part) for part in np.split(actions, sorted(cuts))]
    np.testing.assert_array_equal(whole.rewards, np.concatenate([part.rewards for part in parts]))
    np.testing.assert_array_equal(whole.success, np.concatenate([part.success for part in parts]))
    np.testing.assert_array_equal(whole.observation["state"], parts[-1].observation["state"])
    assert [part.truncated for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (np.abs(whole.observation["state"][:6]) <= 1).all()


def test_images_show_point_and_goal() -> None:
    camera = CameraSettings(names=("top", "near"), height=40, width=60)
    environment = make(
        EnvironmentSettings(family="point_reach", task="push", observations=("images",), camera=camera)
    )
    images = environment.reset(0, seed=0)["images"]
    assert images.shape == (2, 40, 60, 3)
    assert len(np.unique(images[0].reshape(-1, 3), axis=0)) == 4  # background, goal, object, point
    moved = environment.step_chunk(np.ones((3, 2), np.float32)).observation["images"]
    assert (moved[0] != images[0]).any()
    # The second camera goes with the point.
    np.testing.assert_array_equal(moved[1, 20, 30], images[1, 20, 30])
