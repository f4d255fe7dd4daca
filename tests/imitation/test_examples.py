"""Chunks of targets, held-out episodes, and the order of batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gipo_envs import EnvironmentSpec
from gipo_vla.imitation import demonstrations
from gipo_vla.imitation.demonstrations import Episode
from gipo_vla.imitation.examples import BatchOrder, Examples

MakeEpisodes = Callable[..., Iterator[Episode]]


@pytest.fixture
def examples(tmp_path: Path, spec: EnvironmentSpec, make_episodes: MakeEpisodes) -> Examples:
    """Chunk 4; reach has 6 episodes of 3, 5, 7, ... actions, push 5 of 4, 6, ..."""
    demonstrations.write(tmp_path / "d", spec, make_episodes(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0), "experts")
    return Examples(demonstrations.read(tmp_path / "d", spec), chunk=4)


def test_targets_are_the_actions_that_follow(examples: Examples, make_episodes: MakeEpisodes) -> None:
    written = list(make_episodes(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0))
    episodes = [written[index] for index in (0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9)]
    batch = examples.batch(np.arange(len(examples)))
    at = 0
    for episode in episodes:
        for row, first in enumerate(episode.observed_at):
            wanted = episode.actions[first : first + 4]
            assert batch.valid[at].tolist() == [True] * len(wanted) + [False] * (4 - len(wanted))
            assert np.array_equal(batch.actions[at][: len(wanted)], wanted)
            assert np.array_equal(batch.observations["state"][at], episode.observations["state"][row])
            assert batch.observations["task"][at] == episode.task
            at += 1
    assert at == len(examples)


def test_whole_episodes_of_every_task_are_held_out(examples: Examples) -> None:
    training, held = examples.split(0.3, seed=0)
    assert sorted([*training, *held]) == list(range(len(examples)))
    assert not set(examples.episode[training]) & set(examples.episode[held])
    by_task = Counter(examples.demonstrations.task_index[e] for e in set(examples.episode[held]))
    assert by_task == {0: 2, 1: 2}
    assert np.array_equal(examples.split(0.3, seed=0)[1], held)
    assert not np.array_equal(examples.split(0.3, seed=1)[1], held)
    assert len(examples.split(0.0, seed=0)[1]) == 0
    everything_but_one = examples.split(0.99, seed=0)[0]
    assert len(set(examples.episode[everything_but_one])) == 2


@pytest.mark.parametrize("batch_size", [1, 3, 10, 23])
def test_batches_walk_through_shuffled_epochs(batch_size: int) -> None:
    numbers = np.arange(100, 110)
    order = BatchOrder(numbers, batch_size, seed=0)
    steps = 10
    walked = np.concatenate([order.at(step) for step in range(steps)])
    assert len(walked) == steps * batch_size
    epochs = [walked[start : start + 10] for start in range(0, len(walked) - 9, 10)]
    for epoch in epochs:
        assert sorted(epoch) == numbers.tolist()
    if len(epochs) > 1:
        assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(order.at(7), BatchOrder(numbers, batch_size, seed=0).at(7)), "whatever came before"
    assert not np.array_equal(walked, [BatchOrder(numbers, 1, seed=1).at(i)[0] for i in range(len(walked))])
