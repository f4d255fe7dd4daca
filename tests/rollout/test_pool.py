"""The pool does what stepping the environments directly does, and can put them back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gipo_envs import Environment, Observation, make
from gipo_vla.rollout.episodes import EpisodePlan
from gipo_vla.rollout.pool import WorkerPool

MakePool = Callable[..., WorkerPool]


def random_actions(pool: WorkerPool, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (pool.envs, pool.chunk, pool.spec.action_size)).astype(np.float32)


def start(pool: WorkerPool) -> None:
    pool.begin(pool.episodes.first(range(pool.envs)))  # type: ignore[attr-defined]


def steps(pool: WorkerPool, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """What ``count`` vector steps of random actions leave in the shared arrays."""
    rng = np.random.default_rng(seed)
    history = []
    for _ in range(count):
        pool.dispatch(random_actions(pool, rng))
        arrival = pool.wait()
        assert arrival.slots.tolist() == list(range(pool.envs)) and not len(arrival.lost)
        names = ["rewards", "executed", "success", "success_at_end", "terminated", "truncated"]
        names += [f"observation/{name}" for name in pool.spec.observation]
        row = {name: pool.arrays[name].copy() for name in names}
        done = row["terminated"] | row["truncated"]
        history.append(row | {"final/state": pool.arrays["final/state"][done]})
    return history


def assert_histories_equal(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> None:
    for row, other in zip(first, second, strict=True):
        for name, array in row.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


def reset(environment: Environment, plan: EpisodePlan) -> Observation:
    return environment.reset(plan.initial_state, plan.seed, plan.task, plan.step_limit)


@pytest.mark.parametrize(
    "arguments",
    [
        {"chunk": 1, "step_limit": 7},
        {"chunk": 3, "step_limit": 11, "stagger": True},
        {"chunk": 2, "step_limit": 13, "action_repeat": 3, "reward": "sparse", "task": ("reach", "push")},
        {"chunk": 2, "step_limit": 9, "observations": ("state", "proprio", "images"), "workers": 1},
    ],
    ids=str,
)
def test_is_stepping_the_environments_directly(make_pool: MakePool, arguments: dict[str, Any]) -> None:
    if "images" in arguments.get("observations", ()):
        from gipo_envs import CameraSettings

        arguments = arguments | {"camera": CameraSettings(names=("top",), height=8, width=8)}
    pool = make_pool(**arguments)
    start(pool)
    environments = [make(pool.settings) for _ in range(pool.envs)]
    plans = pool.episodes.first(range(pool.envs))  # type: ignore[attr-defined]
    for slot, (environment, plan) in enumerate(zip(environments, plans, strict=True)):
        for name, array in reset(environment, plan).items():
            np.testing.assert_array_equal(pool.arrays[f"observation/{name}"][slot], array)

    rng, ends = np.random.default_rng(0), 0
    for _ in range(25):
        actions = random_actions(pool, rng)
        pool.dispatch(actions)
        arrival = pool.wait()
        assert arrival.slots.tolist() == list(range(pool.envs))
        for slot, environment in enumerate(environments):
            result = environment.step_chunk(actions[slot])
            for name in ("rewards", "success", "executed", "success_at_end", "terminated", "truncated"):
                np.testing.assert_array_equal(pool.arrays[name][slot], getattr(result, name), err_msg=name)
            seen, prefix = result.observation, "observation"
            if result.terminated or result.truncated:
                for name, array in result.observation.items():
                    np.testing.assert_array_equal(pool.arrays[f"final/{name}"][slot], array)
                plans[slot] = pool.episodes.following(plans[slot])  # type: ignore[attr-defined]
                seen = reset(environment, plans[slot])
                ends += 1
            for name, array in seen.items():
                np.testing.assert_array_equal(pool.arrays[f"{prefix}/{name}"][slot], array)
        assert pool.plans == plans
    assert ends >= pool.envs, "the test has seen what happens at the end of an episode"


def test_restoring_a_snapshot_continues_to_the_bit(make_pool: MakePool) -> None:
    pool = make_pool(chunk=2, step_limit=15, stagger=True)
    start(pool)
    steps(pool, 9)
    states = pool.snapshot()
    assert {len(state.actions) for state in states} - {0}, "in the middle of an episode"
    observations = pool.arrays["observation/state"].copy()
    expected, plans = steps(pool, 12, seed=1), list(pool.plans)

    pool.restore(states)
    np.testing.assert_array_equal(pool.arrays["observation/state"], observations)
    assert_histories_equal(steps(pool, 12, seed=1), expected)
    assert pool.plans == plans

    other = make_pool(chunk=2, step_limit=15, workers=1, envs_per_worker=4)  # as after a crash
    other.restore(states)
    assert_histories_equal(steps(other, 12, seed=1), expected)
    assert other.plans == plans


def test_a_snapshot_is_a_copy(make_pool: MakePool) -> None:
    pool = make_pool(workers=1, step_limit=20)
    start(pool)
    steps(pool, 3)
    states = pool.snapshot()
    before = [state.actions.copy() for state in states]
    steps(pool, 5, seed=9)
    for state, actions in zip(states, before, strict=True):
        np.testing.assert_array_equal(state.actions, actions)
        assert actions.shape == (3, 2)


def test_borrowing_changes_nothing(make_pool: MakePool) -> None:
    lent, plain = (make_pool(chunk=2, step_limit=15, stagger=True) for _ in range(2))
    for pool in (lent, plain):
        start(pool)
        steps(pool, 4)
    visits = [EpisodePlan(0, 1_000_000 + number, 0, 15, episode=number) for number in range(4)]
    with lent.borrowed(lambda plan: plan):
        lent.begin(visits)
        lent.arrays["active"][:] = [True, False, True, False]
        lent.dispatch(random_actions(lent, np.random.default_rng(5))[:1], np.array([0, 2]))
        assert lent.wait().slots.tolist() == [0, 2]
        lent.arrays["active"][:] = True
        steps(lent, 9, seed=5)  # some end and begin again
    assert_histories_equal(steps(lent, 20, seed=2), steps(plain, 20, seed=2))
    assert lent.plans == plain.plans


def test_borrowing_gives_back_after_an_error_in_mid_step(make_pool: MakePool) -> None:
    lent, plain = (make_pool(step_limit=15) for _ in range(2))
    for pool in (lent, plain):
        start(pool)
        steps(pool, 4)
    with pytest.raises(KeyboardInterrupt), lent.borrowed(lambda plan: plan):
        lent.begin([EpisodePlan(0, 1_000_000, 0, 15)] * 4)
        lent.dispatch(random_actions(lent, np.random.default_rng(5)))
        raise KeyboardInterrupt
    assert_histories_equal(steps(lent, 14, seed=2), steps(plain, 14, seed=2))


def test_inactive_environments_stand_still(make_pool: MakePool) -> None:
    pool, plain = (make_pool(step_limit=15) for _ in range(2))
    for own in (pool, plain):
        start(own)
    before = pool.arrays["observation/state"].copy()
    pool.arrays["active"][:] = [True, False, True, False]
    pool.dispatch(random_actions(pool, np.random.default_rng(0)))
    assert pool.wait().slots.tolist() == [0, 2]
    moved = (pool.arrays["observation/state"] != before).any(-1)
    assert moved.tolist() == [True, False, True, False]
    assert [len(state.actions) for state in pool.snapshot()] == [1, 0, 1, 0]
    pool.arrays["active"][:] = True
    for first, second in zip(steps(pool, 10, seed=3), steps(plain, 10, seed=3)):
        np.testing.assert_array_equal(first["rewards"][[1, 3]], second["rewards"][[1, 3]])


def test_serving_what_is_ready_serves_every_environment(make_pool: MakePool) -> None:
    pool = make_pool(workers=3, envs_per_worker=2, step_limit=6)
    start(pool)
    rng = np.random.default_rng(0)
    served = np.zeros(pool.envs, int)
    pool.dispatch(random_actions(pool, rng))
    while served.min() < 10:
        arrival = pool.wait_ready()
        assert len(arrival.slots) and not len(arrival.lost)
        groups = arrival.slots.reshape(-1, 2)
        assert (groups[:, 0] % 2 == 0).all() and (groups[:, 1] == groups[:, 0] + 1).all(), "whole workers"
        served[arrival.slots] += 1
        pool.dispatch(random_actions(pool, rng)[arrival.slots], arrival.slots)
    pool.wait()


def test_waiting_for_nothing_returns_nothing(make_pool: MakePool) -> None:
    pool = make_pool(workers=1)
    start(pool)
    for arrival in (pool.wait(), pool.wait_ready()):
        assert not len(arrival.slots) and not len(arrival.lost)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_films_show_the_episodes(make_pool: MakePool, count: int) -> None:
    pool = make_pool(workers=2, step_limit=15)
    start(pool)
    steps(pool, 2)
    rng = np.random.default_rng(0)
    episodes = [
        (EpisodePlan(0, 1_000_000 + key, 0, 15), rng.uniform(-1, 1, (length, 2)).astype(np.float32))
        for key, length in enumerate((7, 3, 12, 5, 6)[:count])
    ]
    with pool.borrowed(lambda following: following):
        films = list(pool.films(episodes, 24, 32, every=3))
    environment = make(pool.settings)
    assert len(films) == count
    for frames, (plan, actions) in zip(films, episodes):
        reset(environment, plan)
        expected = [environment.render(24, 32)]
        for begin in range(0, len(actions), 3):
            environment.replay(actions[begin : begin + 3])
            expected.append(environment.render(24, 32))
        np.testing.assert_array_equal(frames, expected)


def test_a_film_that_nobody_watches_to_its_end_leaves_the_pool_as_it_was(make_pool: MakePool) -> None:
    pool = make_pool(workers=2, step_limit=15)
    start(pool)
    steps(pool, 2)
    before = {name: array.copy() for name, array in pool.arrays.items() if name.startswith("observation/")}
    episode = (EpisodePlan(0, 1_000_000, 0, 15), np.zeros((4, 2), np.float32))
    with pool.borrowed(lambda following: following):
        next(pool.films([episode] * 5, 24, 32))
    for name, array in before.items():
        np.testing.assert_array_equal(pool.arrays[name], array)
    steps(pool, 2)


@pytest.mark.parametrize("family, task", [("point_reach", "reach"), ("metaworld", "reach-v3")])
def test_no_worker_imports_torch(make_pool: MakePool, family: str, task: str) -> None:
    pool = make_pool(workers=2, envs_per_worker=1, family=family, task=task)
    start(pool)
    steps(pool, 2)
    for modules in pool.modules():
        assert "numpy" in modules and "gipo_envs" in modules
        heavy = {name.partition(".")[0] for name in modules} & {"torch", "transformers", "deepspeed", "wandb"}
        assert not heavy
        light = ("gipo_vla.rollout", "gipo_vla.settings")  # the latter for plugins alone
        assert all(name.startswith(light) for name in modules if name.startswith("gipo_vla."))
        assert not {"pydantic", "hydra", "omegaconf"} & set(modules)


def test_closing_leaves_nothing_behind(make_pool: MakePool) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    pool = make_pool()
    start(pool)
    steps(pool, 2)
    pool.dispatch(random_actions(pool, np.random.default_rng(0)))  # and in the middle of a step
    pids = pool.process_ids
    maps = [Path(f"/proc/{pid}/maps").read_text() for pid in pids]
    assert all("memfd:gipo_vla_rollout" in text for text in maps), "memory without a name"
    pool.close()
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "gone and reaped"
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert "gipo_vla_rollout" not in Path("/proc/self/maps").read_text(), "and so is the shared memory"
