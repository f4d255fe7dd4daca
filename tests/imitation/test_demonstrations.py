"""The on-disk format: there and back, in place, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gipo_envs import EnvironmentSettings, EnvironmentSpec, make_spec
from gipo_envs.errors import UserError
from gipo_vla.imitation import demonstrations
from gipo_vla.imitation.demonstrations import Costs, Episode

MakeEpisodes = Callable[..., Iterator[Episode]]


@pytest.fixture
def folder(tmp_path: Path, spec: EnvironmentSpec, make_episodes: MakeEpisodes) -> Path:
    """Episodes of tasks reach, push, reach, push; 3, 4, 5 and 6 actions."""
    path = tmp_path / "demonstrations"
    demonstrations.write(path, spec, make_episodes(0, 1, 0, 1), "experts", Costs(7, 123))
    return path


def test_what_is_written_is_read(folder: Path, spec: EnvironmentSpec, make_episodes: MakeEpisodes) -> None:
    read = demonstrations.read(folder, spec)
    assert (read.attempts, read.env_steps) == (7, 123)
    written = list(make_episodes(0, 1, 0, 1))
    in_task_order = [written[index] for index in (0, 2, 1, 3)]
    assert [record.initial_state for record in read.records] == [100, 102, 101, 103]
    assert read.task_index == (0, 0, 1, 1)
    for record, episode in zip(read.records, in_task_order, strict=True):
        actions = slice(record.first_action, record.first_action + record.actions)
        rows = slice(record.first_row, record.first_row + record.rows)
        assert np.array_equal(read.actions[actions], episode.actions)
        assert np.array_equal(read.observed_at[rows] - record.first_action, episode.observed_at)
        for name in ("state", "images"):
            assert np.array_equal(read.observations[name][rows], episode.observations[name])


def test_arrays_are_plain_npy_in_maps(folder: Path, spec: EnvironmentSpec) -> None:
    read = demonstrations.read(folder, spec)
    images = read.observations["images"]
    assert isinstance(images, np.memmap) and images.dtype == np.uint8 and images.shape == (10, 1, 16, 16, 3)
    assert np.array_equal(np.load(folder / "observation-images.npy", allow_pickle=False), images)
    assert {path.suffix for path in folder.iterdir()} == {".npy", ".json"}


def test_the_same_episodes_are_the_same_bytes(
    folder: Path, tmp_path: Path, spec: EnvironmentSpec, make_episodes: MakeEpisodes
) -> None:
    demonstrations.write(tmp_path / "again", spec, make_episodes(0, 1, 0, 1), "experts", Costs(7, 123))
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_part_of_the_tasks_and_episodes_can_be_taken(folder: Path, spec: EnvironmentSpec) -> None:
    assert len(demonstrations.read(folder, spec, count=1).records) == 2
    only_push = replace(spec, tasks=("push",), instructions=("push",))
    read = demonstrations.read(folder, only_push)
    assert read.task_index == (0, 0) and {record.task for record in read.records} == {"push"}
    without_images = make_spec(EnvironmentSettings("point_reach", "push", ("state",)))
    assert list(demonstrations.read(folder, without_images).observations) == ["state"]


def test_what_is_interrupted_has_no_name(
    tmp_path: Path, spec: EnvironmentSpec, make_episodes: MakeEpisodes
) -> None:
    def failing() -> Iterator[Episode]:
        yield from make_episodes(0)
        raise KeyboardInterrupt

    path = tmp_path / "demonstrations"
    with pytest.raises(KeyboardInterrupt):
        demonstrations.write(path, spec, failing(), "experts")
    assert not demonstrations.exists(path)
    demonstrations.write(path, spec, make_episodes(0, 1), "experts")
    assert len(demonstrations.read(path, spec).records) == 2


def test_no_episode_is_an_error(tmp_path: Path, spec: EnvironmentSpec) -> None:
    with pytest.raises(UserError, match="there is no demonstration"):
        demonstrations.write(tmp_path / "none", spec, [], "experts")


def test_what_does_not_fit_is_named(folder: Path, spec: EnvironmentSpec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no demonstrations"):
        demonstrations.read(tmp_path, spec)
    with pytest.raises(UserError, match="action_repeat 1, the environment has 2"):
        demonstrations.read(folder, replace(spec, action_repeat=2))
    with pytest.raises(UserError, match="holds 2 demonstrations of reach, 3 wanted"):
        demonstrations.read(folder, spec, count=3)
    proprio = make_spec(EnvironmentSettings("point_reach", "reach", ("proprio",)))
    with pytest.raises(UserError, match="proprio none"):
        demonstrations.read(folder, proprio)
    facts = json.loads((folder / "demonstrations.json").read_text())
    (folder / "demonstrations.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        demonstrations.read(folder, spec)
    (folder / "demonstrations.json").write_text(json.dumps(facts))
    (folder / "actions.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"actions\.npy cannot be read"):
        demonstrations.read(folder, spec)
