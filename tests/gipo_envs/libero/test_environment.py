"""LIBERO behind the protocol: chunks, ends, determinism, conventions. Two tasks, drawn small."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from gipo_envs import EVALUATION_KEYS_START, CameraSettings, Environment, EnvironmentSettings, Observation
from gipo_envs import make as make_environment
from gipo_envs.libero import simulations
from gipo_envs.libero.environment import LiberoEnvironment
from tests.gipo_envs.libero import goals
from tests.gipo_envs.libero.conftest import MakeLibero

pytestmark = pytest.mark.usefixtures("libero_assets", "pictures")

EVALUATION = EVALUATION_KEYS_START
TASKS = (4, "turn_on_the_stove")
"""Of libero_goal."""


def _actions(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 7)).astype(np.float32)


def _same(first: Observation, second: Observation) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.fixture
def seeing(make_libero: MakeLibero) -> LiberoEnvironment:
    """Two tasks, with everything that can be observed."""
    environment = make_libero("libero_goal", TASKS, ("images", "proprio", "state"))
    assert isinstance(environment, LiberoEnvironment)
    return environment


def test_observations_are_those_of_the_spec(seeing: Environment) -> None:
    for task in range(2):
        observation = seeing.reset(0, 0, task)
        assert observation["task"] == task
        for name, array in seeing.spec.observation.items():
            assert (observation[name].shape, str(observation[name].dtype)) == (array.shape, array.dtype)
        assert observation["images"].std() > 10
        np.testing.assert_array_equal(observation["state"][:8], observation["proprio"])


def test_drawing_once_a_chunk_changes_nothing(seeing: Environment) -> None:
    """Gated or drawn in every step: the same bits at the chunk's end, in all arrays."""
    actions = _actions(8)
    seeing.reset(EVALUATION + 3, 0)
    every_step = [seeing.step_chunk(action[None]) for action in actions][-1]
    seeing.reset(EVALUATION + 3, 0)
    once = seeing.step_chunk(actions)
    _same(once.observation, every_step.observation)
    _same(seeing.observe(), once.observation)


def test_repeats_are_identical(seeing: LiberoEnvironment) -> None:
    """After other episodes, on either task, and beside another environment on the same simulation."""
    actions = _actions(16)
    for key in (7, EVALUATION + 7):
        expected = []
        first = seeing.reset(key, 3, task=1)
        expected = [first, *(seeing.step_chunk(actions[n : n + 4]).observation for n in (0, 4, 8, 12))]

        seeing.reset(2, 0, task=0)
        seeing.step_chunk(_actions(3, seed=5))
        other = LiberoEnvironment(seeing._settings, seeing.spec, seeing._tasks, seeing._assets)
        other.reset(11, 1, task=1)
        actual = [seeing.reset(key, 3, task=1)]
        assert other.simulation is seeing.simulation
        for start in (0, 4, 8, 12):
            other.step_chunk(_actions(2, seed=start))
            other.render(20, 30)
            actual.append(seeing.step_chunk(actions[start : start + 4]).observation)
        other.close()
        for before, after in zip(expected, actual, strict=True):
            _same(before, after)


def test_a_fresh_simulation_gives_the_same(seeing: LiberoEnvironment) -> None:
    actions = _actions(8)
    seeing.reset(5, 0)
    seeing.reset(4, 0)
    worn = seeing.step_chunk(actions).observation
    seeing.close()
    for key in list(simulations._kept):
        simulations._kept.pop(key).close()
    seeing.reset(4, 0)
    _same(seeing.step_chunk(actions).observation, worn)


def test_episodes_leave_the_model_as_it_was(seeing: LiberoEnvironment) -> None:
    """Except for the fields that every reset restores."""
    from gipo_envs.libero.installation import MODEL_FIELDS

    seeing.reset(0, 0, task=1)
    model = seeing.simulation.model
    before = copy.copy(model)
    goals.fulfil(seeing.simulation, seeing.episode)
    seeing.step_chunk(_actions(8))
    seeing.reset(EVALUATION, 8, task=1)
    changed = set()
    for name in dir(model):
        value = getattr(model, name)
        if isinstance(value, np.ndarray) and not np.array_equal(value, getattr(before, name), equal_nan=True):
            changed.add(name)
    assert changed <= set(MODEL_FIELDS)
    assert "body_pos" in changed


def test_replay_is_stepping(seeing: Environment) -> None:
    actions = _actions(14)
    seeing.reset(EVALUATION + 1, 4)
    before = seeing.step_chunk(actions[:9]).observation
    after = seeing.step_chunk(actions[9:]).observation
    seeing.reset(0, 0, task=1)
    seeing.reset(EVALUATION + 1, 4)
    seeing.replay(actions[:4])
    seeing.replay(actions[4:9])
    _same(seeing.observe(), before)
    _same(seeing.step_chunk(actions[9:]).observation, after)


def test_pictures_change_nothing(seeing: Environment) -> None:
    actions = _actions(4)
    seeing.reset(0, 0)
    expected = [seeing.step_chunk(action[None]).observation for action in actions]
    seeing.reset(0, 0)
    for action, observation in zip(actions, expected):
        assert seeing.render(60, 80).shape == (60, 80, 3)
        _same(seeing.step_chunk(action[None]).observation, observation)


def test_numpys_generator_is_left_alone(seeing: LiberoEnvironment) -> None:
    np.random.seed(1)
    expected = np.random.random(3)
    np.random.seed(1)
    actual = [np.random.random()]
    seeing.reset(0, 0, task=1)
    actual.append(np.random.random())
    seeing.close()
    simulations._kept.popitem()[1].close()
    seeing.reset(EVALUATION, 0, task=1)
    actual.append(np.random.random())
    np.testing.assert_array_equal(actual, expected)


def test_initial_states(make_libero: MakeLibero) -> None:
    environment = make_libero("libero_spatial", 0)

    def state(key: int, seed: int) -> bytes:
        return environment.reset(key, seed)["state"].tobytes()

    keys = [0, 1, 2, EVALUATION, EVALUATION + 1, EVALUATION + 49, EVALUATION + 50, EVALUATION + 51]
    assert len({state(key, 0) for key in keys}) == len(keys)
    for sampled in (1, EVALUATION + 50):
        assert state(sampled, 0) == state(sampled, 9)  # the sampler's key decides everything


def test_sampled_states_are_those_of_a_hard_reset(make_libero: MakeLibero) -> None:
    """Objects on fixtures begin on them, although a soft reset finds the fixtures moved: a bowl on a cabinet
    that had been put a metre above it would fall for all of the settle steps."""
    environment = make_libero("libero_spatial", 3)
    assert isinstance(environment, LiberoEnvironment)
    for key in range(3):
        environment.reset(key, 0)
        data = environment.simulation.data
        bowl, cabinet = data.body("akita_black_bowl_2_main").xpos, data.body("wooden_cabinet_1_main").xpos
        assert np.linalg.norm(bowl[:2] - cabinet[:2]) < 0.1
        assert np.abs(data.qvel[9:]).max() < 0.1


@pytest.mark.parametrize("task", range(2))
def test_success(make_libero: MakeLibero, task: int) -> None:
    """A state that fulfils the goal: reward 1 once, and the end, in the middle of a chunk."""
    environment = make_libero("libero_goal", TASKS, ("images", "proprio", "state"))
    assert isinstance(environment, LiberoEnvironment)
    still = np.tile(np.array([0, 0, 0, 0, 0, 0, -1], np.float32), (8, 1))

    def solve(**arguments: bool) -> None:
        environment.reset(EVALUATION, 0, task, **arguments)  # type: ignore[arg-type]
        assert not environment.step_chunk(still).success.any()
        goals.fulfil(environment.simulation, environment.episode)

    solve()
    result = environment.step_chunk(still)
    end = result.executed - 1
    assert result.terminated
    assert not result.truncated
    assert result.success_at_end
    assert result.rewards.tolist() == [float(index == end) for index in range(8)]
    assert result.success.tolist() == [index == end for index in range(8)]
    with pytest.raises(RuntimeError, match="reset"):
        environment.step_chunk(still)
    solve()
    for _ in range(end):
        environment.step_chunk(still[:1])
    # The picture is that of the step that ended the episode.
    _same(environment.step_chunk(still[:1]).observation, result.observation)
    solve(end_on_success=False)
    going_on = environment.step_chunk(still)
    assert going_on.executed == 8
    assert going_on.rewards.sum() == 1
    assert not going_on.terminated


def test_the_step_limit_does_not_count_settling(make_libero: MakeLibero) -> None:
    environment = make_libero("libero_spatial", 0, step_limit=12)
    environment.reset(0, 0)
    assert environment.step_chunk(_actions(8)).executed == 8
    result = environment.step_chunk(_actions(8))
    assert (result.executed, result.truncated, result.terminated) == (4, True, False)
    environment.reset(0, 0, step_limit=3)
    assert environment.step_chunk(_actions(8)).executed == 3


def test_actions(make_libero: MakeLibero) -> None:
    """+1 closes the gripper, -1 opens it; +1 moves the hand by some centimetres along its axis."""
    environment = make_libero("libero_object", 0)
    settled = environment.reset(EVALUATION, 0)["proprio"]
    for gripper, closed in ((1.0, True), (-1.0, False)):
        environment.reset(EVALUATION, 0)
        action = np.zeros((8, 7), np.float32)
        action[:, 6] = gripper
        fingers = environment.step_chunk(action).observation["proprio"][6:]
        assert (fingers[0] - fingers[1] < 0.03) == closed
    for axis in range(3):
        environment.reset(EVALUATION, 0)
        action = np.zeros((8, 7), np.float32)
        action[:, axis], action[:, 6] = 0.5, -1
        moved = environment.step_chunk(action).observation["proprio"][:3] - settled[:3]
        assert 0.02 < moved[axis] < 0.25
        assert np.abs(np.delete(moved, axis)).max() < 0.02


@pytest.fixture
def formats(libero_assets: object) -> Iterator[dict[str, NDArray[np.uint8]]]:
    """One frame of the agent's camera in every image format."""
    images = {}
    for name in ("raw", "rotated", "openvla"):
        camera = CameraSettings(names=("agentview",), height=256, width=256, quality="fast", format=name)
        settings = EnvironmentSettings("libero_spatial", 0, ("images",), camera, reward="sparse")
        environment = make_environment(settings)
        images[name] = environment.reset(EVALUATION, 0)["images"][0]
        environment.close()
    yield images


def test_image_formats(formats: dict[str, NDArray[np.uint8]]) -> None:
    """The published path is applied to LIBERO's frame, which is upside down."""
    from gipo_envs.openvla_image import published_image

    raw = formats["raw"]
    np.testing.assert_array_equal(formats["rotated"], raw[::-1, ::-1])
    np.testing.assert_array_equal(formats["openvla"], published_image(raw))
    assert formats["openvla"].shape == (224, 224, 3)


def test_upright_pictures(make_libero: MakeLibero) -> None:
    environment = make_libero(
        "libero_spatial", 0, ("images",), CameraSettings(("agentview",), 64, 64, "default")
    )
    upside_down = environment.reset(EVALUATION, 0)["images"][0]
    picture = environment.render(64, 64)
    difference = np.abs(picture.astype(int) - upside_down[::-1])
    assert difference.mean() < 2  # an observation is some milliseconds older
