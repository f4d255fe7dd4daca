"""Evaluation on borrowed workers: every episode once, exactly as if played alone, and nothing disturbed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gipo_envs import make, make_spec
from gipo_vla.assembly import build_policy
from gipo_vla.evaluation.episodes import EpisodeResult, play
from gipo_vla.policies.base import Policy
from gipo_vla.rollout.episodes import TrainingEpisodes, evaluation_plans
from gipo_vla.rollout.pool import WorkerPool
from gipo_vla.settings.schema import TrainingSettings
from tests.conftest import MakeConfig

CPU = torch.device("cpu")


@pytest.fixture
def settings(make_config: MakeConfig) -> TrainingSettings:
    return make_config("rollout.workers=2", "rollout.envs_per_worker=3", "env.task=[reach,push]")


@pytest.fixture
def policy(settings: TrainingSettings) -> Policy:
    return build_policy(settings, make_spec(settings.env), CPU)


def pool_of(settings: TrainingSettings) -> WorkerPool:
    spec = make_spec(settings.env)
    episodes = TrainingEpisodes(spec, 0, 6)
    pool = WorkerPool(settings.env, spec, 2, 3, 1, episodes.following)
    pool.begin(episodes.first(range(6)))
    return pool


def played(settings: TrainingSettings, policy: Policy, pool: WorkerPool, greedy: bool) -> list[EpisodeResult]:
    plans = evaluation_plans(pool.spec, 5)
    return play(settings, policy, pool, plans, CPU, "greedy" if greedy else "sampled")


def test_every_plan_is_played_once_as_if_alone(settings: TrainingSettings, policy: Policy) -> None:
    """Ten plans on six environments, against one environment stepped by hand."""
    with pool_of(settings) as pool:
        results = played(settings, policy, pool, greedy=True)
    assert [result.plan for result in results] == evaluation_plans(pool.spec, 5)
    environment = make(settings.env)
    for result in results:
        plan = result.plan
        observation = environment.reset(
            plan.initial_state, plan.seed, plan.task, plan.step_limit, plan.end_on_success
        )
        total, once, outcome = 0.0, False, None
        while outcome is None or not (outcome.terminated or outcome.truncated):
            batch = {name: torch.from_numpy(np.asarray(array)[None]) for name, array in observation.items()}
            tokens = policy.act(batch, 1.0, None, greedy=True).tokens
            outcome = environment.step_chunk(policy.decode(tokens).numpy()[0])
            observation = outcome.observation
            total += float(outcome.rewards.sum())
            once |= bool(outcome.success.any())
        assert result.episode_return == pytest.approx(total)
        assert (result.success_once, result.success_at_end) == (once, outcome.success_at_end)
        assert result.env_steps == plan.step_limit == sum(len(part) for part in result.actions)


def test_evaluation_does_not_end_on_success_though_training_does(make_config: MakeConfig) -> None:
    settings = make_config("env.reward=sparse", "rollout.workers=2", "rollout.envs_per_worker=3")
    spec = make_spec(settings.env)
    assert spec.end_on_success
    policy = build_policy(settings, spec, CPU)
    with pool_of(settings) as pool:
        results = played(settings, policy, pool, greedy=False)
    assert {result.env_steps for result in results} == {spec.step_limit}


def test_simulators_are_given_back_as_they_were(settings: TrainingSettings, policy: Policy) -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (12, 6, 1, 2)).astype(np.float32)

    def observations(with_evaluation: bool) -> list[np.ndarray]:
        seen = []
        with pool_of(settings) as pool:
            for number, own in enumerate(actions):
                pool.dispatch(own)
                pool.wait()
                seen.append(pool.arrays["observation/state"].copy())
                if with_evaluation and number == 6:
                    played(settings, policy, pool, greedy=True)
        return seen

    np.testing.assert_array_equal(observations(True), observations(False))


def test_sampled_evaluation_repeats_with_its_generator(settings: TrainingSettings, policy: Policy) -> None:
    with pool_of(settings) as pool:
        first, second = (played(settings, policy, pool, greedy=False) for _ in range(2))
    assert [result.episode_return for result in first] == [result.episode_return for result in second]
