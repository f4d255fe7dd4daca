"""The streams of episodes: pure functions of seed, environment and number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gipo_envs import EnvironmentSettings, EnvironmentSpec, make_spec
from gipo_vla.rollout.episodes import Role, TrainingEpisodes, evaluation_plans, generator, integer_seed


@pytest.fixture
def spec() -> EnvironmentSpec:
    return make_spec(EnvironmentSettings("point_reach", ("reach", "push"), step_limit=40))


def test_a_plan_is_a_pure_function(spec: EnvironmentSpec) -> None:
    first, second = TrainingEpisodes(spec, 3, 8), TrainingEpisodes(spec, 3, 8)
    backwards = {(env, number): second.plan(env, number) for env in range(7, -1, -1) for number in (5, 2, 0)}
    for (env, number), plan in backwards.items():
        assert first.plan(env, number) == plan
        assert (plan.env, plan.episode) == (env, number)
        assert first.following(plan) == first.plan(env, number + 1)
    assert first.first(range(2, 5)) == [first.plan(env, 0) for env in (2, 3, 4)]


def test_other_seeds_environments_and_numbers_give_other_episodes(spec: EnvironmentSpec) -> None:
    plans = [
        TrainingEpisodes(spec, seed, 8).plan(env, number)
        for seed in range(3)
        for env in range(8)
        for number in range(1, 5)
    ]
    assert len({plan.initial_state for plan in plans}) > 0.99 * len(plans)
    assert len({plan.seed for plan in plans}) > 0.99 * len(plans)
    assert {plan.task for plan in plans} == {0, 1}


def test_the_number_of_environments_changes_no_stream(spec: EnvironmentSpec) -> None:
    """So a run may go on with another number of ranks."""
    few, many = TrainingEpisodes(spec, 0, 4, stagger=False), TrainingEpisodes(spec, 0, 64, stagger=False)
    assert [few.plan(env, 3) for env in range(4)] == [many.plan(env, 3) for env in range(4)]
    few, many = TrainingEpisodes(spec, 0, 4, group_size=2), TrainingEpisodes(spec, 0, 64, group_size=2)
    for env in range(4):
        assert replace(few.plan(env, 3), group=0) == replace(many.plan(env, 3), group=0)


def test_training_and_evaluation_keys_are_disjoint(spec: EnvironmentSpec) -> None:
    training = TrainingEpisodes(spec, 0, 4)
    keys = {training.plan(env, number).initial_state for env in range(4) for number in range(200)}
    assert all(spec.training_keys[0] <= key < spec.training_keys[1] for key in keys)
    held_out = evaluation_plans(spec, 50)
    assert all(spec.evaluation_keys[0] <= plan.initial_state < spec.evaluation_keys[1] for plan in held_out)
    assert spec.training_keys[1] <= spec.evaluation_keys[0]


def test_evaluation_plans_are_the_same_states_of_each_task(spec: EnvironmentSpec) -> None:
    plans = evaluation_plans(spec, 5)
    assert [plan.task for plan in plans] == [0] * 5 + [1] * 5
    states = [plan.initial_state for plan in plans]
    assert states[:5] == states[5:] and len(set(states)) == 5
    assert len(set(plans)) == 10 and {plan.step_limit for plan in plans} == {40}
    assert evaluation_plans(spec, 3) == plans[:3] + plans[5:8]


def test_members_of_a_group_start_alike(spec: EnvironmentSpec) -> None:
    training = TrainingEpisodes(spec, 0, 8, group_size=4)
    seen = {}
    for number in range(6):
        for start in (0, 4):
            members = [training.plan(env, number) for env in range(start, start + 4)]
            assert len({replace(plan, env=0) for plan in members}) == 1
            seen[members[0].group] = members[0].initial_state
            assert members[0].step_limit == 40, "no member is shortened"
    assert len(seen) == 12 == len(set(seen.values())), "every group has an id and a state of its own"


def test_episodes_outside_groups_say_so(spec: EnvironmentSpec) -> None:
    assert TrainingEpisodes(spec, 0, 4).plan(2, 7).group == -1


@pytest.mark.parametrize("envs, expected", [(4, [10, 20, 30, 40]), (1, [40]), (80, None)])
def test_stagger_spreads_the_first_ends_only(
    spec: EnvironmentSpec, envs: int, expected: list[int] | None
) -> None:
    training = TrainingEpisodes(spec, 0, envs)
    limits = [plan.step_limit for plan in training.first(range(envs))]
    if expected is not None:
        assert limits == expected
    assert limits == sorted(limits) and limits[0] >= 1 and limits[-1] == 40
    assert {training.plan(env, 1).step_limit for env in range(envs)} == {40}
    plain = TrainingEpisodes(spec, 0, envs, stagger=False)
    assert {plan.step_limit for plan in plain.first(range(envs))} == {40}


def test_stagger_counts_whole_actions() -> None:
    spec = make_spec(EnvironmentSettings("point_reach", "reach", step_limit=40, action_repeat=3))
    limits = [plan.step_limit for plan in TrainingEpisodes(spec, 0, 7).first(range(7))]
    assert all(limit % 3 == 0 or limit == 40 for limit in limits)


def test_roles_never_share_a_stream() -> None:
    draws = {int(generator(0, role, *ids).integers(2**63)) for role in Role for ids in ((), (1,), (1, 1))}
    assert len(draws) == 3 * len(Role)
    assert 0 <= integer_seed(5, Role.ACTION, 1) < 2**63
    assert integer_seed(5, Role.ACTION, 1) == integer_seed(5, Role.ACTION, 1)
    assert isinstance(generator(0, Role.REPLAY).bit_generator, np.random.PCG64)
