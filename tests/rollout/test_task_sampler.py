"""Which tasks are drawn: uniformly, or hard ones more often."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gipo_envs import EnvironmentSettings, EnvironmentSpec, make_spec
from gipo_vla.rollout.episodes import TrainingEpisodes
from gipo_vla.rollout.task_sampler import WINDOW, TaskSampler


def frequencies(sampler: TaskSampler, draws: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.bincount([sampler.draw(rng) for _ in range(draws)], minlength=len(sampler.names)) / draws


def test_probabilities_are_the_formula() -> None:
    sampler = TaskSampler("abc", "success", floor=0.3)
    assert sampler.probabilities == pytest.approx([1 / 3] * 3), "nothing is known yet"
    sampler.observe([(0, True), (0, True), (1, False), (1, False), (1, True)])
    failure = np.array([1 / 4, 3 / 5, 1 / 2])
    assert sampler.probabilities == pytest.approx(0.1 + 0.7 * failure / failure.sum())
    assert frequencies(sampler) == pytest.approx(sampler.probabilities, abs=0.02)


def test_every_task_keeps_its_floor() -> None:
    sampler = TaskSampler("ab", "success", floor=0.2)
    sampler.observe([(0, True), (1, False)] * 500)
    assert sampler.probabilities[0] >= 0.1
    assert frequencies(sampler)[0] > 0.09
    assert sampler.metrics()["task/a/episodes"] == 500


def test_only_the_latest_episodes_count() -> None:
    sampler = TaskSampler("ab", "success")
    sampler.observe([(0, False)] * 50 + [(0, True)] * WINDOW + [(1, False)] * WINDOW)
    assert sampler.metrics()["task/a/success_once_recent"] == 1.0
    assert sampler.probabilities[0] < sampler.probabilities[1]


def test_uniform_whatever_happens() -> None:
    sampler = TaskSampler("abcd")
    sampler.observe([(0, True)] * 30)
    assert sampler.probabilities == pytest.approx([0.25] * 4)
    assert frequencies(sampler) == pytest.approx([0.25] * 4, abs=0.03)
    assert "task/a/probability" not in sampler.metrics()
    assert sampler.metrics()["task/b/success_once_recent"] is None
    assert TaskSampler("a").metrics() == {}


def test_state_goes_through_json() -> None:
    sampler, other = TaskSampler("ab", "success"), TaskSampler("ab", "success")
    sampler.observe([(0, True), (1, False), (1, True)] * 9)
    other.load_state(json.loads(json.dumps(sampler.state())))
    assert other.metrics() == sampler.metrics()
    other.observe([(0, False)])
    sampler.observe([(0, False)])
    assert other.state() == sampler.state()


# ------------------------------------------------------------------------------------------------ groups


@pytest.fixture
def spec() -> EnvironmentSpec:
    return make_spec(EnvironmentSettings("point_reach", ("reach", "push"), step_limit=40))


def group_episodes(spec: EnvironmentSpec) -> tuple[TaskSampler, TrainingEpisodes]:
    sampler = TaskSampler(spec.tasks, "success", floor=0.01)
    return sampler, TrainingEpisodes(spec, 0, 4, group_size=4, tasks=sampler)


def test_members_that_ask_later_get_the_task_of_the_first(spec: EnvironmentSpec) -> None:
    """Also when the statistics have turned round in between, and a checkpoint lies there."""
    sampler, episodes = group_episodes(spec)
    for number in range(20):
        hard = number % 2
        sampler.observe([(hard, False), (1 - hard, True)] * WINDOW)
        plans = [episodes.plan(env, number) for env in (2, 0)]
        sampler.observe([(hard, True), (1 - hard, False)] * WINDOW)
        _, again = group_episodes(spec)
        again.load_state(json.loads(json.dumps(episodes.state())))
        plans += [again.plan(env, number) for env in (1, 3)]
        assert len({(plan.task, plan.initial_state, plan.seed, plan.group) for plan in plans}) == 1
        assert again.state() == []
        episodes.load_state([])
