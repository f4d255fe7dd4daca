"""Landmarks of LIBERO: read off the simulator, the same whoever else has had a turn on it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from gipo_envs.libero import catalogue, installation, landmarks
from gipo_envs.libero.environment import LiberoEnvironment
from gipo_vla.credit.graph.state_keys import grid_ids
from tests.gipo_envs.libero import goals
from tests.gipo_envs.libero.conftest import MakeLibero


def _actions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 7)).astype(np.float32)


@pytest.mark.usefixtures("libero_installed")
@pytest.mark.parametrize("suite", list(catalogue.STEP_LIMITS))
def test_every_goal_has_its_place(suite: str) -> None:
    folder = installation.package_folder() / "bddl_files" / suite
    counts = []
    for path in folder.glob("*.bddl"):
        goal = path.read_text().partition("(:goal")[2]
        counts.append(len(re.findall(r"\((?!and\b)\w+( \w+){1,2}\)", goal, re.IGNORECASE)))
    assert len(counts) >= 10 and max(counts) == catalogue.GOAL_PREDICATES[suite] and min(counts) >= 1
    assert len(landmarks.names(suite)) == 4 + 14 * max(counts)


@pytest.fixture
def environment(make_libero: MakeLibero) -> LiberoEnvironment:
    """Tasks: the bowl on top of the cabinet; the stove."""
    made = make_libero("libero_goal", (4, "turn_on_the_stove"), ("proprio", "landmarks"))
    assert isinstance(made, LiberoEnvironment)
    return made


def test_they_are_the_same_after_a_restore_and_beside_others(
    environment: LiberoEnvironment, make_libero: MakeLibero
) -> None:
    actions = _actions(12)
    environment.reset(7, 3, task=1)
    first = environment.step_chunk(actions[:8]).observation["landmarks"]
    expected = environment.step_chunk(actions[8:]).observation["landmarks"]
    other = make_libero("libero_goal", (4, "turn_on_the_stove"), ("proprio", "landmarks"))
    environment.reset(7, 3, task=1)
    other.reset(2, 0, task=1)
    environment.replay(actions[:8])
    other.step_chunk(_actions(3, seed=1))
    np.testing.assert_array_equal(environment.observe()["landmarks"], first)
    actual = environment.step_chunk(actions[8:]).observation["landmarks"]
    np.testing.assert_array_equal(actual, expected)
    assert not np.array_equal(first, expected)


def test_state_keys_are_the_same_after_a_restore(environment: LiberoEnvironment) -> None:
    """Keys of credit=graph (sim) at the boundaries of four chunks."""
    is_position = np.array([landmark.kind == "position" for landmark in environment.spec.landmarks])
    actions = _actions(16)

    def keys(restored: bool) -> list[int]:
        states = [environment.reset(7, 3, task=0)["landmarks"]]
        for start in range(0, 16, 4):
            if restored:
                environment.reset(1, 0, task=1)
                environment.reset(7, 3, task=0)
                if start:
                    environment.replay(actions[:start])
            states.append(environment.step_chunk(actions[start : start + 4]).observation["landmarks"])
        ids: list[int] = grid_ids(np.stack(states), states[0], 0.01, is_position).tolist()
        return ids

    straight = keys(restored=False)
    assert len(set(straight)) > 1 and keys(restored=True) == straight


@pytest.mark.parametrize("task", [0, 1])
def test_a_goal_that_is_met_holds(environment: LiberoEnvironment, task: int) -> None:
    names = [landmark.name for landmark in environment.spec.landmarks]
    before = dict(zip(names, environment.reset(0, 0, task=task)["landmarks"]))
    assert before["goal 0 holds"] == 0
    goals.fulfil(environment.simulation, environment.episode)
    after = dict(zip(names, environment.simulation.landmarks(environment.episode)))
    assert after["goal 0 holds"] == 1

    def place(values: dict[str, Any], what: str) -> np.ndarray:
        return np.array([values[f"goal 0 {what} {axis}"] for axis in "xyz"])

    if task == 0:
        # The grip is fixed to the object, and the region to the cabinet, where the object now is.
        hand = np.array([before[f"hand {axis}"] for axis in "xyz"])  # it has not moved
        grips = [hand + place(values, "reach") - place(values, "object") for values in (before, after)]
        np.testing.assert_allclose(grips[1], grips[0], atol=2e-3)
        regions = [place(values, "object") + place(values, "way") for values in (before, after)]
        np.testing.assert_allclose(regions[1], regions[0], atol=1e-3)
        assert np.linalg.norm(place(before, "way")) > 0.1 > 0.03 > np.abs(place(after, "way")[:2]).max()
    else:
        # A knob: the joint that the goal reads, and a grip that goes round with it to its region.
        assert before["goal 0 joint"] == pytest.approx(0, abs=0.01) and after["goal 0 joint"] >= 0.5
        regions = [place(values, "object") + place(values, "way") for values in (before, after)]
        np.testing.assert_allclose(regions[1], regions[0], atol=1e-3)
        assert np.linalg.norm(place(after, "way")) < 0.8 * np.linalg.norm(place(before, "way"))


def test_goals_are_read_by_name(environment: LiberoEnvironment) -> None:
    names = [landmark.name for landmark in environment.spec.landmarks]
    values = environment.reset(0, 0, task=0)["landmarks"]
    by_name = dict(zip(names, values))
    (goal,) = landmarks.goals(values)
    hand, thing, reach, way = (
        np.array([by_name[f"{name} {axis}"] for axis in "xyz"], np.float64)
        for name in ("hand", "goal 0 object", "goal 0 reach", "goal 0 way")
    )
    np.testing.assert_array_equal(goal.object, thing)
    np.testing.assert_array_equal(goal.grip, hand + reach)
    np.testing.assert_array_equal(goal.region, thing + way)
    assert np.linalg.norm(goal.across) == pytest.approx(1, abs=1e-6)
    assert (goal.width, goal.joint) == (by_name["goal 0 width"], 0) and not goal.holds


def test_the_hand_and_its_gripper(environment: LiberoEnvironment) -> None:
    names = [landmark.name for landmark in environment.spec.landmarks]
    before = dict(zip(names, environment.reset(0, 0, task=0)["landmarks"]))
    assert before["gripper closed"] == 0
    close = np.tile(np.array([0, 0, 0, 0, 0, 0, 1], np.float32), (10, 1))
    observation = environment.step_chunk(close).observation
    after = dict(zip(names, observation["landmarks"]))
    assert after["gripper closed"] == 1
    np.testing.assert_array_equal([after[f"hand {axis}"] for axis in "xyz"], observation["proprio"][:3])
