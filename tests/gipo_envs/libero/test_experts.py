"""LIBERO's scripted experts: they solve tasks, remember nothing, and what is recorded is what they saw."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gipo_envs import EnvironmentSettings, make_spec
from gipo_envs.errors import UserError
from gipo_envs.libero import catalogue, experts
from gipo_envs.libero.expert_rates import attempt
from gipo_envs.registry import make_expert
from gipo_vla.imitation.recorder import Attempt, Outcome, Recorder, RecorderSetup
from tests.gipo_envs.libero.conftest import MakeLibero

TURN, BOWL_ON_PLATE, BOWL_ON_CABINET = 7, 8, 4
"""Numbers of tasks of libero_goal."""


@pytest.mark.medium
@pytest.mark.parametrize(
    ("suite", "task"),
    [
        ("libero_object", 0),
        ("libero_object", 4),
        ("libero_goal", TURN),
        ("libero_goal", BOWL_ON_PLATE),
        ("libero_goal", BOWL_ON_CABINET),
    ],
)
def test_they_succeed_under_noise(make_libero: MakeLibero, suite: str, task: int) -> None:
    environment = make_libero(suite, task, experts.OBSERVATIONS)
    assert all(attempt(suite, environment, key, noise=0.1) for key in range(2))


@pytest.mark.medium
def test_a_recorded_episode_is_what_the_expert_saw_and_did(libero_assets: object) -> None:
    settings = EnvironmentSettings(
        "libero_goal", TURN, observations=("proprio", "landmarks"), reward="sparse"
    )
    tried = Attempt(task=0, initial_state=3, seed=5, noise_seed=1)

    def record() -> Outcome:
        recorder = Recorder(RecorderSetup(settings, action_noise=0.1, steps_after_success=2, observe_every=3))
        outcome = recorder.on_record(tried)
        recorder.close()
        return outcome

    outcome = record()
    episode = outcome.episode
    assert episode is not None and len(episode.actions) == outcome.env_steps < 300
    expert = make_expert("libero_goal", make_spec(settings).tasks[0])
    assert episode.observed_at.tolist() == list(range(0, len(episode.actions), 3))
    for row, at in enumerate(episode.observed_at):
        seen = {name: array[row] for name, array in episode.observations.items()}
        np.testing.assert_array_equal(expert(seen), episode.actions[at])
    again = record().episode
    assert again is not None
    np.testing.assert_array_equal(again.actions, episode.actions)
    for name, array in episode.observations.items():
        np.testing.assert_array_equal(again.observations[name], array)


def test_an_expert_is_a_pure_function_of_what_it_reads(make_libero: MakeLibero) -> None:
    environment = make_libero("libero_object", 0, experts.OBSERVATIONS)
    observation = environment.reset(0, 0)
    kept = {name: array.copy() for name, array in observation.items()}
    expert = make_expert("libero_object", environment.spec.tasks[0])
    first = expert(observation)
    assert first.dtype == np.float32 and first.shape == (7,) and np.abs(first).max() <= 1
    assert first[6] == experts.OPEN
    expert(environment.step_chunk(first[None]).observation)
    np.testing.assert_array_equal(expert(observation), first)
    for name, array in kept.items():
        np.testing.assert_array_equal(observation[name], array)


@pytest.mark.usefixtures("libero_installed")
@pytest.mark.parametrize("suite", list(catalogue.STEP_LIMITS))
def test_every_task_has_motions(suite: str) -> None:
    for task in catalogue.tasks(suite):
        experts.make_expert(suite, task.name)


@pytest.mark.usefixtures("libero_installed")
def test_an_unknown_predicate_is_refused() -> None:
    task = catalogue.tasks("libero_goal")[0]
    with pytest.raises(UserError, match="has no scripted expert: its goal is up plate_1"):
        experts._motion(["up", "plate_1"], task)


@pytest.mark.parametrize("turned", [[0, 0, 0], [0.3, -0.2, 0.1], [0, 0, 0.4], [-0.2, 0.3, -0.3]])
def test_the_hand_is_turned_palm_down(turned: list[float]) -> None:
    """The rotation of an action leads from a hand that is turned back to one with its palm down."""
    palm_down = Rotation.from_matrix(np.diag([-1.0, 1.0, -1.0]))
    proprio = np.zeros(8, np.float32)
    proprio[3:6] = (Rotation.from_rotvec(turned) * palm_down).as_rotvec()
    hand = experts.read_hand(proprio)
    aim = experts.Aim(hand.position, experts.OPEN, experts.DEFAULT_ACROSS)
    rotation = experts.action_towards(hand, aim)[3:6] * experts.ROTATION_REACH
    np.testing.assert_allclose(rotation, -np.array(turned), atol=1e-6)
