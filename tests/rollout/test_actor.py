"""Segments hold, exactly, what happened."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections import defaultdict
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch

from gipo_envs import make
from gipo_vla.policies.base import Policy
from gipo_vla.replay.segment import Segment
from gipo_vla.rollout.actor import Actor

MakeActor = Callable[..., Actor]


def collect(actor: Actor, vector_steps: int, ready: bool = False) -> list[Segment]:
    for _ in range(vector_steps):
        actor.advance(ready)
    actor.finish()
    return actor.take_segments()


def by_episode(segments: list[Segment]) -> dict[tuple[int, int], list[Segment]]:
    """Segments of each (env, episode), in order; only those whose end is there are complete."""
    episodes = defaultdict(list)
    for segment in segments:
        episodes[segment.env, segment.episode].append(segment)
    return {key: sorted(own, key=lambda segment: segment.start) for key, own in episodes.items()}


def is_complete(episode: list[Segment]) -> bool:
    return bool(episode[-1].terminated or episode[-1].truncated)


def rows(segment: Segment, name: str) -> np.ndarray:
    return getattr(segment, name)[: segment.length]


def check_episode(actor: Actor, key: tuple[int, int], episode: list[Segment]) -> None:
    """Play the stored tokens again in an environment of our own."""
    plan = actor.pool.episodes.plan(*key)  # type: ignore[attr-defined]
    environment = make(actor.pool.settings)
    observation = environment.reset(plan.initial_state, plan.seed, plan.task, plan.step_limit)
    at = 0
    for number, segment in enumerate(episode):
        length = segment.length
        assert segment.start == at and (segment.task, segment.group) == (
            plan.task,
            plan.group,
        )
        assert length == actor.layout.length or (number == len(episode) - 1 and is_complete(episode))
        for row in range(length):
            for name, array in observation.items():
                np.testing.assert_array_equal(segment.observations[name][row], array)
            tokens = torch.from_numpy(segment.tokens[row][None].astype(np.int64))
            result = environment.step_chunk(actor.policy.decode(tokens)[0].numpy())
            for name in ("rewards", "success", "executed"):
                np.testing.assert_array_equal(getattr(segment, name)[row], getattr(result, name))
            observation = result.observation
            last = number == len(episode) - 1 and row == length - 1
            assert (result.terminated or result.truncated) == (last and is_complete(episode))
        for name, array in observation.items():  # what follows; of this episode, never of the next one
            np.testing.assert_array_equal(segment.observations[name][length], array)
        ended = number == len(episode) - 1 and is_complete(episode)
        assert segment.terminated == (ended and result.terminated)
        assert segment.truncated == (ended and result.truncated)
        at += length


@pytest.mark.parametrize(
    "arguments",
    [
        {"length": 5, "step_limit": 12, "stagger": True},
        {"length": 4, "step_limit": 12},  # an episode is whole segments
        {"length": 30, "step_limit": 12},  # ... and shorter than one
        {"length": 1, "step_limit": 3},
        {"length": 3, "step_limit": 20, "chunk": 3},  # the limit falls within a chunk
        {"length": 3, "step_limit": 20, "chunk": 2, "action_repeat": 3},
        {"length": 4, "step_limit": 30, "reward": "sparse", "chunk": 2, "envs_per_worker": 4},
        {"length": 4, "step_limit": 12, "task": ("reach", "push"), "observations": ("state", "proprio")},
    ],
    ids=str,
)
def test_segments_are_the_episodes(make_actor: MakeActor, arguments: dict[str, Any]) -> None:
    actor = make_actor(**arguments)
    episodes = by_episode(collect(actor, 50))
    complete = [key for key, episode in episodes.items() if is_complete(episode)]
    assert len(complete) >= actor.pool.envs
    if arguments.get("reward") == "sparse":
        assert any(episodes[key][-1].terminated for key in complete), "seen a termination"
    for key, episode in episodes.items():
        check_episode(actor, key, episode)
    # Records and counters say the same.
    records = {(record.env, record.episode): record for record in actor.take_episodes()}
    assert sorted(records) == sorted(complete)
    for key, record in records.items():
        rewards = [rows(segment, "rewards").sum(dtype=np.float64) for segment in episodes[key]]
        assert record.episode_return == pytest.approx(sum(rewards), abs=1e-4)
        assert record.success_once == any(rows(segment, "success").any() for segment in episodes[key])
        executed = sum(int(rows(segment, "executed").sum()) for segment in episodes[key])
        assert record.env_steps == executed * actor.pool.spec.action_repeat
        assert record.task == episodes[key][0].task
    assert actor.decisions == 50 * actor.pool.envs
    transitions = sum(segment.length for own in episodes.values() for segment in own)
    assert transitions + int(actor._position.sum()) == actor.decisions, "every decision is in some segment"


def test_success_at_end_is_that_of_the_last_step(make_actor: MakeActor) -> None:
    actor = make_actor(step_limit=40, envs_per_worker=6, end_on_success=False)
    episodes = by_episode(collect(actor, 85))
    records = actor.take_episodes()
    for record in records:
        last = episodes[record.env, record.episode][-1]
        assert record.success_at_end == bool(rows(last, "success")[-1, -1])
    assert any(record.success_once and not record.success_at_end for record in records)


def test_padding_is_zero(make_actor: MakeActor) -> None:
    """Also where an earlier, longer segment of the same environment had stood."""
    actor = make_actor(length=5, step_limit=7, chunk=1, store_logits=True)
    short = [segment for segment in collect(actor, 40) if segment.length == 2]
    assert len(short) >= 8
    for segment in short:
        arrays = {name: array[0] for name, array in actor.layout.stack([segment]).arrays().items()}
        for name, field in actor.layout.fields.items():
            if field.shape:
                used = 2 + name.startswith("observation/")
                assert not arrays[name][used:].any(), name
        for name in ("observation/state", "log_probs", "logits", "rewards"):
            assert arrays[name][:2].any(), name


@pytest.mark.parametrize("store_logits", [True, False])
def test_fields_have_the_layout(make_actor: MakeActor, store_logits: bool) -> None:
    actor = make_actor(store_logits=store_logits, step_limit=7)
    for segment in collect(actor, 12):
        assert (segment.logits is None) == (not store_logits)
        named = {f"observation/{name}": array for name, array in segment.observations.items()}
        assert {name for name in actor.layout.fields if name.startswith("observation/")} == set(named)
        for name, field in actor.layout.fields.items():
            value = named[name] if name in named else getattr(segment, name)
            if field.shape:
                assert (value.shape, value.dtype) == (field.shape, field.dtype), name
            else:
                assert type(value) in (int, bool, float) and np.array(value, field.dtype) == value, name


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_log_probs_are_those_of_the_version_that_acted(make_actor: MakeActor, temperature: float) -> None:
    actor = make_actor(length=4, step_limit=11, temperature=temperature, store_logits=True, store_values=True)
    policies: dict[int, Policy] = {}
    segments = []
    for version in range(5):
        actor.version, actor.iteration = 3 * version, version
        with torch.no_grad():
            for parameter in actor.policy.parameters():  # type: ignore[attr-defined]
                parameter += 0.2 * torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(version)
                )
        policies[3 * version] = actor.policy.twin()
        for _ in range(3):  # a segment may hold decisions of two versions
            actor.advance()
        if version == 4:
            actor.finish()
        segments += actor.take_segments()
    mixed = 0
    for segment in segments:
        length = segment.length
        mixed += len(set(rows(segment, "version").tolist())) > 1
        assert (rows(segment, "temperature") == np.float32(temperature)).all()
        np.testing.assert_array_equal(rows(segment, "version"), 3 * rows(segment, "iteration"))
        for row in range(length):
            observation = {
                name: torch.from_numpy(segment.observations[name][row][None])
                for name in actor.layout.observation_names
            }
            tokens = torch.from_numpy(segment.tokens[row][None].astype(np.int64))
            policy = policies[int(segment.version[row])]
            out = policy.evaluate(observation, tokens, torch.tensor([temperature]))
            np.testing.assert_allclose(segment.log_probs[row], out.log_probs[0], atol=1e-5)
            np.testing.assert_allclose(segment.values[row], out.values[0], atol=1e-5)
            np.testing.assert_allclose(segment.logits[row], out.logits[0], atol=5e-3)  # type: ignore[index]
    assert mixed


def test_bootstrap_values_are_of_the_observation_that_follows(make_actor: MakeActor) -> None:
    actor = make_actor(length=4, step_limit=10, store_values=True)
    segments = collect(actor, 30)
    assert {segment.truncated for segment in segments} == {True, False}
    for segment in segments:
        following = {
            name: torch.from_numpy(segment.observations[name][segment.length][None])
            for name in actor.layout.observation_names
        }
        np.testing.assert_allclose(segment.bootstrap_value, actor.policy.value(following)[0], atol=1e-5)


def test_segments_come_in_environment_order(make_actor: MakeActor) -> None:
    actor = make_actor(length=3, step_limit=7, workers=3)
    keys = [(segment.env, segment.episode, segment.start) for segment in collect(actor, 30)]
    assert keys == sorted(keys) and len(keys) == len(set(keys)) and len(keys) > 30
    assert actor.take_segments() == []


def test_serving_what_is_ready_makes_whole_episodes_too(make_actor: MakeActor) -> None:
    actor = make_actor(length=4, step_limit=10, workers=3)
    episodes = by_episode(collect(actor, 150, ready=True))
    assert sum(is_complete(episode) for episode in episodes.values()) > 6
    for key, episode in episodes.items():
        check_episode(actor, key, episode)
    transitions = sum(segment.length for own in episodes.values() for segment in own)
    assert transitions + int(actor._position.sum()) == actor.decisions


def assert_same_segments(first: list[Segment], second: list[Segment]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.observations.keys() == other.observations.keys()
        for field in dataclasses.fields(Segment):
            np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_saved_state_continues_to_the_bit(make_actor: MakeActor, group_size: int) -> None:
    arguments = {"length": 4, "step_limit": 23, "reward": "sparse", "chunk": 2, "group_size": group_size}
    arguments |= {"on_group": number_members} if group_size > 1 else {}
    actor = make_actor(**arguments)
    actor.version, actor.iteration = 5, 2
    for _ in range(17):
        actor.advance()
    actor.finish()
    arrays, values = actor.state()
    arrays = {name: array.copy() for name, array in arrays.items()}
    assert arrays["position"].any(), "with open segments"
    records = list(actor.records._ended)
    expected = collect(actor, 30)

    restored = make_actor(**arguments | {"seed": 99})  # everything that differs comes from the state
    restored.pool.next_plan = actor.pool.next_plan
    restored.load_state(arrays, values)
    assert (restored.version, restored.iteration) == (5, 2)
    assert restored.records._ended == records
    assert_same_segments(collect(restored, 30), expected)
    assert restored.take_episodes() == actor.take_episodes()
    for name in ("env_steps", "decisions", "groups.dropped_segments"):
        assert attrgetter(name)(restored) == attrgetter(name)(actor)


def test_a_state_survives_json_and_safetensors(make_actor: MakeActor, tmp_path: Any) -> None:
    import json

    from safetensors.numpy import load_file, save_file

    actor = make_actor(length=4, step_limit=9, group_size=2, on_group=number_members)
    collect(actor, 7)
    arrays, values = actor.state()
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, tmp_path / "a")
    values = json.loads(json.dumps(values))
    expected = collect(actor, 12)
    restored = make_actor(length=4, step_limit=9, group_size=2, on_group=number_members)
    restored.load_state(load_file(tmp_path / "a"), values)
    assert_same_segments(collect(restored, 12), expected)


def test_a_run_with_other_environments_begins_unplayed_episodes(make_actor: MakeActor) -> None:
    actor = make_actor(length=4, step_limit=10, stagger=True)
    collect(actor, 6)
    actor.begin_episode_number(7)
    episodes = by_episode(collect(actor, 12))
    assert sorted(episodes) == [(env, 7) for env in range(4)]
    for key, episode in episodes.items():
        check_episode(actor, key, episode)
    assert {(record.env, record.episode) for record in actor.take_episodes()} == set(episodes)


# ------------------------------------------------------------------------------------------------- groups


def number_members(episodes: Any) -> None:
    """Writes 1, 2, ... as the advantage of the group's episodes."""
    for number, episode in enumerate(episodes, start=1):
        for segment in episode:
            segment.advantages[: segment.length] = number


def test_groups_are_released_whole_and_in_order(make_actor: MakeActor) -> None:
    released: list[list[list[Segment]]] = []

    def on_group(episodes: Any) -> None:
        released.append(list(episodes))
        number_members(episodes)

    actor = make_actor(
        length=4, step_limit=30, reward="sparse", envs_per_worker=4, group_size=4, on_group=on_group
    )
    segments, lengths = [], set()
    for _ in range(12):
        taken = collect(actor, 10)
        groups = [segment.group for segment in taken]
        assert groups == sorted(groups)
        segments += taken
    assert len(released) >= 4
    for episodes in released:
        assert len(episodes) == 4 and len({own[0].group for own in episodes}) == 1
        environments = [own[0].env for own in episodes]
        assert environments == sorted(set(environments)) and environments[0] % 4 == 0
        starts = {own[0].observations["state"][0].tobytes() for own in episodes}
        assert len(starts) == 1, "one initial state"
        for own in episodes:
            assert is_complete(own)
            check_episode(actor, (own[0].env, own[0].episode), own)
        lengths.add(tuple(sum(segment.length for segment in own) for own in episodes))
    assert any(len(set(own)) > 1 for own in lengths), "members end at different times"
    # What is handed over is what the groups hold, with their advantages, and nothing of open groups.
    assert len(segments) == sum(len(own) for episodes in released for own in episodes)
    for segment in segments:
        length, member = segment.length, segment.env % 4
        assert (segment.advantages[:length] == member + 1).all()
        assert not segment.advantages[length:].any()


def test_a_group_that_lost_a_member_is_dropped(make_actor: MakeActor) -> None:
    released: list[int] = []
    actor = make_actor(
        length=4,
        step_limit=10,
        workers=2,
        envs_per_worker=3,
        group_size=2,  # environments 2 and 3 are one group, in two workers
        on_group=lambda episodes: released.append(episodes[0][0].group),
    )
    collect(actor, 6)
    os.kill(actor.pool.process_ids[0], signal.SIGKILL)
    segments = collect(actor, 40)
    lost = {0, 1}  # the groups of environments 0 to 3, first episode
    assert not lost & set(released) and 2 in released
    assert set(released) == {segment.group for segment in segments}
    counts = defaultdict(set)
    for segment in segments:
        counts[segment.group].add(segment.env)
    assert all(len(environments) == 2 for environments in counts.values())
    # One closed and one open segment in each of 0, 1, 2; in 3 the closed one and the two that came after.
    assert actor.groups.dropped_segments == 3 * 2 + 3


# ------------------------------------------------------------------------------------------------- faults


def test_losing_a_worker_costs_its_open_segments_only(make_actor: MakeActor) -> None:
    actor, plain = (make_actor(length=4, step_limit=10) for _ in range(2))
    for own in (actor, plain):
        for _ in range(6):  # one closed segment each, and an open one of 1 or 2
            own.advance()
    os.kill(actor.pool.process_ids[0], signal.SIGKILL)
    segments, expected = collect(actor, 30), collect(plain, 30)
    untouched = [[segment for segment in own if segment.env >= 2] for own in (segments, expected)]
    assert_same_segments(*untouched)
    assert actor.groups.dropped_segments == 2 and actor.pool.faults == 1
    assert actor.decisions == plain.decisions
    episodes = by_episode(segments)
    for env in (0, 1):
        assert not is_complete(episodes[env, 0]), "what was closed before stays"
        assert [segment.start for segment in episodes[env, 1]] == [0, 4, 8], "then a new episode"
    for key, episode in episodes.items():
        check_episode(actor, key, episode)
    records = {(record.env, record.episode) for record in actor.take_episodes()}
    assert (0, 0) not in records and (0, 1) in records and (2, 0) in records
    assert actor.env_steps == plain.env_steps - 2, "two results were lost"


def test_losing_every_worker_at_once_is_survived(make_actor: MakeActor) -> None:
    actor = make_actor(length=4, step_limit=10)
    actor.advance()
    for pid in actor.pool.process_ids:
        os.kill(pid, signal.SIGKILL)
    segments = collect(actor, 12)
    assert actor.pool.faults == 2
    episodes = by_episode(segments)
    assert {episode for _, episode in episodes} == {1}
    for key, episode in episodes.items():
        check_episode(actor, key, episode)
