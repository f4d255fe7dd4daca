"""What ``gipo_envs.protocol`` promises of every family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gipo_envs import ChunkResult, Environment, Observation

Make = Callable[..., Environment]
Controller = Callable[[Observation], NDArray[np.float32]]


def _random_actions(environment: Environment, count: int, seed: int = 0) -> NDArray[np.float32]:
    shape = (count, environment.spec.action_size)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _assert_same(first: Observation, second: Observation) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def _solve(environment: Environment, controller: Controller, key: int = 0) -> tuple[list, list[ChunkResult]]:
    """Steps one action at a time until the episode ends; returns actions and results."""
    observation = environment.reset(key, seed=0)
    actions, results = [], []
    while not results or not (results[-1].terminated or results[-1].truncated):
        # Copied, because metaworld's experts write into what they are given.
        actions.append(controller({name: array.copy() for name, array in observation.items()}))
        results.append(environment.step_chunk(actions[-1][None]))
        observation = results[-1].observation
    return actions, results


@pytest.mark.parametrize("action_repeat", [1, 3])
def test_a_chunk_is_its_single_steps(make_solvable: Make, action_repeat: int) -> None:
    environment = make_solvable(action_repeat=action_repeat)
    actions = _random_actions(environment, 8)
    environment.reset(1, seed=0)
    singles = [environment.step_chunk(action[None]) for action in actions]
    environment.reset(1, seed=0)
    first, second = environment.step_chunk(actions[:5]), environment.step_chunk(actions[5:])
    for name, dtype in (("rewards", np.float32), ("success", np.bool_)):
        chunked = np.concatenate([getattr(first, name), getattr(second, name)])
        assert chunked.dtype == dtype
        np.testing.assert_array_equal(chunked, np.concatenate([getattr(single, name) for single in singles]))
    assert (first.executed, second.executed) == (5, 3)
    _assert_same(first.observation, singles[4].observation)
    _assert_same(second.observation, singles[7].observation)
    _assert_same(environment.observe(), second.observation)


def test_replay_is_stepping(make_solvable: Make) -> None:
    stepped, replayed = make_solvable(action_repeat=2), make_solvable(action_repeat=2)
    actions = _random_actions(stepped, 12)
    stepped.reset(3, seed=0)
    before = stepped.step_chunk(actions[:8])
    replayed.reset(77, seed=0)
    replayed.replay(actions[8:])  # another episode leaves no trace
    replayed.reset(3, seed=0)
    replayed.replay(actions[:6])
    replayed.replay(actions[6:8])
    _assert_same(replayed.observe(), before.observation)
    expected, actual = stepped.step_chunk(actions[8:]), replayed.step_chunk(actions[8:])
    _assert_same(actual.observation, expected.observation)
    np.testing.assert_array_equal(actual.rewards, expected.rewards)


def test_held_actions(make_solvable: Make) -> None:
    """An action held for three env steps is three times the action."""
    held, single = make_solvable(action_repeat=3), make_solvable()
    actions = _random_actions(held, 4)
    held.reset(5, seed=0)
    single.reset(5, seed=0)
    coarse, fine = held.step_chunk(actions), single.step_chunk(np.repeat(actions, 3, axis=0))
    _assert_same(coarse.observation, fine.observation)
    np.testing.assert_allclose(coarse.rewards, fine.rewards.reshape(4, 3).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(coarse.success, fine.success.reshape(4, 3).any(1))


def test_the_step_limit_cuts_a_held_action_short(make_solvable: Make) -> None:
    held, single = make_solvable(action_repeat=3, step_limit=10), make_solvable(step_limit=10)
    assert held.spec.actions_limit == 4
    actions = _random_actions(held, 6)
    held.reset(5, seed=0)
    single.reset(5, seed=0)
    result, fine = held.step_chunk(actions), single.step_chunk(np.repeat(actions, 3, axis=0))
    assert (result.executed, fine.executed) == (4, 10)
    assert (result.terminated, result.truncated) == (fine.terminated, fine.truncated) == (False, True)
    _assert_same(result.observation, fine.observation)
    assert result.rewards.shape == (6,)
    assert not result.rewards[4:].any()
    assert not result.success[4:].any()
    np.testing.assert_allclose(
        result.rewards[:4], np.add.reduceat(fine.rewards[:10], [0, 3, 6, 9]), rtol=1e-5
    )


def test_an_episodes_own_step_limit(make_solvable: Make) -> None:
    environment = make_solvable(step_limit=20)
    actions = _random_actions(environment, 20)
    environment.reset(0, seed=0, step_limit=7)
    assert environment.step_chunk(actions).executed == 7
    environment.reset(0, seed=0)
    result = environment.step_chunk(actions)
    assert (result.executed, result.truncated) == (20, True)


def test_nothing_goes_on_after_the_end(make_solvable: Make) -> None:
    environment = make_solvable(step_limit=2)
    actions = _random_actions(environment, 3)
    with pytest.raises(RuntimeError, match="reset"):
        environment.step_chunk(actions)
    environment.reset(0, seed=0)
    assert environment.step_chunk(actions).truncated
    with pytest.raises(RuntimeError, match="reset"):
        environment.step_chunk(actions)
    environment.reset(0, seed=0)
    with pytest.raises(ValueError, match="ended"):
        environment.replay(actions)


@pytest.mark.parametrize("end_on_success", [None, True, False])
@pytest.mark.parametrize("reward", ["dense", "sparse"])
def test_success(
    make_solvable: Make, controller: Controller, reward: str, end_on_success: bool | None
) -> None:
    environment = make_solvable(reward=reward, end_on_success=end_on_success, step_limit=150)
    ends = reward == "sparse" if end_on_success is None else end_on_success
    assert environment.spec.end_on_success == ends
    actions, results = _solve(environment, controller)
    success = [bool(result.success[0]) for result in results]
    assert any(success)
    first = success.index(True)
    assert not results[0].success_at_end
    assert results[first].success_at_end
    if ends:
        assert first == len(results) - 1
        assert results[-1].terminated
        assert not results[-1].truncated
    else:
        assert len(results) == 150
        assert not results[-1].terminated
        assert results[-1].truncated
    if reward == "sparse":
        assert [result.rewards[0] for result in results] == [float(i == first) for i in range(len(results))]
    # The same in one chunk with actions to spare, at another time.
    environment.reset(9, seed=0)
    environment.reset(0, seed=0)
    chunk = environment.step_chunk(np.stack([*actions, *[actions[0]] * 5]))
    assert chunk.executed == len(results)
    assert (chunk.terminated, chunk.truncated) == (ends, not ends)
    assert chunk.success_at_end == results[-1].success_at_end
    np.testing.assert_array_equal(
        chunk.rewards, [*(result.rewards[0] for result in results), *np.zeros(5, np.float32)]
    )
    np.testing.assert_array_equal(chunk.success, [*success, *[False] * 5])


def test_success_within_a_held_action(make_solvable: Make, controller: Controller) -> None:
    """Success in any env step of an action counts for it; ending on it cuts the action short."""
    _, fine = _solve(make_solvable(step_limit=150, end_on_success=True), controller)
    reference = make_solvable(step_limit=150, action_repeat=4, reward="sparse")
    _, results = _solve(reference, controller)
    assert results[-1].terminated
    assert results[-1].success_at_end
    assert results[-1].rewards[0] == 1.0
    assert len(results) <= len(fine)


def test_observations_are_the_callers(make_solvable: Make) -> None:
    environment = make_solvable()
    observation = environment.reset(0, seed=0)
    kept = {name: array.copy() for name, array in observation.items()}
    environment.step_chunk(_random_actions(environment, 2))
    _assert_same(observation, kept)
    observation["state"][:] = 7.0
    environment.reset(0, seed=0)
    _assert_same(environment.observe(), kept)


def test_wrong_actions(make_solvable: Make) -> None:
    environment = make_solvable()
    environment.reset(0, seed=0)
    size = environment.spec.action_size
    for actions in (np.zeros(size), np.zeros((0, size)), np.zeros((1, size + 1)), np.full((1, size), np.nan)):
        with pytest.raises(ValueError, match="actions"):
            environment.step_chunk(actions.astype(np.float32))


def test_training_and_evaluation_differ(make_solvable: Make) -> None:
    environment = make_solvable()
    spec = environment.spec
    assert spec.training_keys[1] <= spec.evaluation_keys[0]
    keys = [*range(20), *range(spec.evaluation_keys[0], spec.evaluation_keys[0] + 20)]
    states = {environment.reset(key, seed=0)["state"].tobytes() for key in keys}
    assert len(states) == len(keys)
    assert environment.reset(3, seed=0)["state"].tobytes() == environment.reset(3, seed=8)["state"].tobytes()


def test_render(make_solvable: Make, pictures: None) -> None:
    """Pictures of environments without images, which change no bit of what follows."""
    watched, unwatched = make_solvable(), make_solvable()
    actions = _random_actions(watched, 6)
    watched.reset(2, seed=0)
    unwatched.reset(2, seed=0)
    frames = [watched.render(48, 64)]
    for action in actions:
        frames.append(watched.render(48, 64))
        first, second = watched.step_chunk(action[None]), unwatched.step_chunk(action[None])
        _assert_same(first.observation, second.observation)
        np.testing.assert_array_equal(first.rewards, second.rewards)
    np.testing.assert_array_equal(frames[0], frames[1])
    assert frames[0].shape == (48, 64, 3)
    assert frames[0].dtype == np.uint8
    assert (frames[1] != frames[-1]).any()
