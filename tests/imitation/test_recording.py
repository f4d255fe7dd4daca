"""Recording scripted experts: which episodes, what is kept of them, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from gipo_envs import EVALUATION_KEYS_START, CameraSettings, EnvironmentSettings, make, make_spec
from gipo_envs.errors import UserError
from gipo_envs.registry import make_expert
from gipo_vla.imitation.demonstrations import Episode
from gipo_vla.imitation.recorder import Attempt, Recorder, RecorderSetup
from gipo_vla.imitation.recording import Recording, attempts
from gipo_vla.imitation.settings import ExpertSettings, StateRange

ENV = EnvironmentSettings("point_reach", "reach", ("images", "proprio"), CameraSettings(("top",), 16, 16))
SPEC = make_spec(ENV)


def record(
    settings: ExpertSettings, workers: int = 1, seed: int = 0, env: EnvironmentSettings = ENV
) -> tuple[list[Episode], int]:
    """Episodes and attempts."""
    with Recording(env, make_spec(env), settings, seed, workers, 60.0) as recording:
        return list(recording.episodes()), recording.costs.attempts


def recorder(env: EnvironmentSettings = ENV, **settings: object) -> Recorder:
    values = {"action_noise": 0.0, "steps_after_success": 3, "observe_every": 1} | settings
    return Recorder(RecorderSetup(env, **values))  # type: ignore[arg-type]


def assert_same(first: Sequence[Episode], second: Sequence[Episode]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert (one.task, one.initial_state) == (other.task, other.initial_state)
        assert np.array_equal(one.actions, other.actions)
        assert all(
            np.array_equal(one.observations[name], other.observations[name]) for name in one.observations
        )


# ----------------------------------------------------------------------------------------------- attempts


@pytest.mark.parametrize("states", [None, 1, 7])
def test_attempts_begin_with_training_states_only(states: int | None) -> None:
    plans = list(islice(attempts(SPEC, ExpertSettings(initial_states=states), 0, 0), 50))
    keys = [plan.initial_state for plan in plans]
    assert all(0 <= key < EVALUATION_KEYS_START for key in keys)
    assert len(set(keys)) == (states or 50)
    assert len({plan.noise_seed for plan in plans}) == 50


def test_attempts_depend_on_the_seed_and_the_task() -> None:
    def first(seed: int, task: int) -> list[Attempt]:
        return list(islice(attempts(SPEC, ExpertSettings(), seed, task), 3))

    assert first(0, 0) == first(0, 0)
    keys = {tuple(plan.initial_state for plan in first(*ids)) for ids in ((0, 0), (1, 0), (0, 1))}
    assert len(keys) == 3


# ------------------------------------------------------------------------------------------ one recording


def test_observations_are_those_of_the_policys_environment() -> None:
    """Row n is what the environment shows before action n of an undisturbed expert."""
    episode = recorder(observe_every=2).on_record(Attempt(0, 5, 0, 0)).episode
    assert episode is not None
    driven, viewed = make(replace(ENV, observations=("state",))), make(ENV)
    expert = make_expert("point_reach", "reach")
    seen, shown = driven.reset(5, 0), viewed.reset(5, 0)
    for number, action in enumerate(episode.actions):
        assert np.array_equal(expert(seen), action)
        if number % 2 == 0:
            assert episode.observed_at[number // 2] == number
            for name in ("images", "proprio"):
                assert np.array_equal(episode.observations[name][number // 2], shown[name])
        seen = driven.step_chunk(action[None]).observation
        shown = viewed.step_chunk(action[None]).observation
    assert "task" not in episode.observations and "state" not in episode.observations


def test_an_episode_ends_some_actions_after_its_first_success() -> None:
    def length(after: int) -> int:
        episode = recorder(steps_after_success=after).on_record(Attempt(0, 5, 0, 0)).episode
        assert episode is not None
        return len(episode.actions)

    assert length(4) - length(0) == 4
    assert length(1000) == SPEC.actions_limit


def test_noise_disturbs_what_is_executed_and_not_what_is_cloned() -> None:
    attempt = Attempt(0, 5, 0, noise_seed=1)
    noisy, again = (recorder(action_noise=0.4).on_record(attempt).episode for _ in range(2))
    plain = recorder().on_record(attempt).episode
    assert noisy is not None and again is not None and plain is not None
    assert_same([noisy], [again])
    assert np.array_equal(noisy.actions[0], plain.actions[0])
    assert not np.array_equal(noisy.observations["proprio"][1], plain.observations["proprio"][1])
    assert np.abs(noisy.actions).max() <= 1.0


def test_failures_are_not_kept() -> None:
    outcome = recorder(replace(ENV, step_limit=2)).on_record(Attempt(0, 5, 0, 0))
    assert outcome.episode is None and outcome.in_range and outcome.env_steps == 2


def test_initial_states_can_be_confined() -> None:
    episodes, _ = record(ExpertSettings(count=6, state_range=StateRange(4, None, -0.2)))
    environment = make(replace(ENV, observations=("state",)))
    goals = [environment.reset(episode.initial_state, 0)["state"][4] for episode in episodes]
    assert max(goals) <= -0.2 and len(set(goals)) == 6


# --------------------------------------------------------------------------------------------- processes


def test_the_number_of_workers_changes_nothing() -> None:
    env = replace(ENV, task=("reach", "push"), step_limit=14)
    settings = ExpertSettings(count=4, action_noise=0.5)
    one, tried = record(settings, workers=1, env=env)
    three, tried_by_three = record(settings, workers=3, env=env)
    assert_same(one, three)
    assert tried == tried_by_three > 8, "some attempts fail within so few steps"
    assert [episode.task for episode in one] == [0] * 4 + [1] * 4


def test_recorders_do_without_torch() -> None:
    with Recording(ENV, SPEC, ExpertSettings(), 0, 1, 60.0) as recording:
        process = recording._processes[0]
        process.request("modules")
        assert not {"torch", "gipo_vla.settings.schema"} & set(process.answer().value)


def test_hopeless_settings_are_told() -> None:
    with pytest.raises(UserError, match=r"reach succeeded in 0 of 5 .*action_noise"):
        record(ExpertSettings(count=2, max_attempts=5), env=replace(ENV, step_limit=1))
    with pytest.raises(UserError, match=r"state\[4\] was within 2 to 3 in 0 of"):
        record(ExpertSettings(state_range=StateRange(4, 2.0, 3.0)))
    with pytest.raises(UserError, match=r"state_range\.index is 10.*10 numbers"):
        record(ExpertSettings(state_range=StateRange(10)))
    with pytest.raises(UserError, match="recorded has no scripted experts"):
        Recording(replace(ENV, family="recorded"), SPEC, ExpertSettings(), 0, 1, 60.0)
