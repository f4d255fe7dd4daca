"""Groups on their way through a credit: segments joined to episodes, advantages written back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from gipo_vla.credit import GraphSettings, GroupSettings, InformationGainSettings
from gipo_vla.credit.base import CreditAssigner, CreditBatch, CreditOutput, GroupEpisode
from gipo_vla.replay import samplers
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.replay.segment import Segment
from gipo_vla.rollout.actor import Actor
from gipo_vla.rollout.groups import GroupAdvantages, GroupCounts

MakeActor = Callable[..., Actor]


class Numbering(CreditAssigner):
    """Advantages 0, 1, 2, ... along each episode; remembers what it was given."""

    needs_groups, needs_values = True, False
    inputs = ("landmarks", "features")

    def __init__(self, older_transitions: int = 0) -> None:
        self.most = older_transitions
        self.groups: list[list[GroupEpisode]] = []
        self.older: list[Sequence[GroupEpisode]] = []

    @property
    def older_transitions(self) -> int:
        return self.most

    def on_group(
        self, episodes: Sequence[GroupEpisode], older: Sequence[GroupEpisode] = ()
    ) -> list[np.ndarray]:
        self.groups.append(list(episodes))
        self.older.append(older)
        return [np.arange(len(episode), dtype=np.float32) for episode in episodes]

    def on_batch(self, batch: CreditBatch) -> CreditOutput:
        raise NotImplementedError


def double(observations: Mapping[str, np.ndarray]) -> np.ndarray:
    return 2 * observations["state"]


@pytest.fixture
def collected(make_actor: MakeActor) -> Callable[..., tuple[Numbering, list[Segment], SegmentRing]]:
    """``collected(older_transitions)``: three complete groups of two episodes, as segments."""

    def collect(older_transitions: int = 0) -> tuple[Numbering, list[Segment], SegmentRing]:
        credit, hooks = Numbering(older_transitions), []
        actor = make_actor(
            length=4,
            step_limit=10,
            group_size=2,
            envs_per_worker=2,
            workers=1,
            on_group=lambda episodes: hooks[0](episodes),
            observations=("state", "landmarks"),
        )
        ring = SegmentRing(actor.layout, 1000, 1 << 20, samplers.uniform)
        if older_transitions:
            credit.inputs = ("landmarks",)  # type: ignore[misc]
        hooks.append(GroupAdvantages(credit, 0.5, ring, double))
        segments: list[Segment] = []
        for _ in range(3):
            for _ in range(10):
                actor.advance()
            actor.finish()
            new = actor.take_segments()
            segments += new
            for segment in new:
                ring.add(segment)
        return credit, segments, ring

    return collect


@pytest.mark.parametrize("only_contrast", [False, True])
def test_groups_without_contrast_are_left_out_and_counted(make_actor: MakeActor, only_contrast: bool) -> None:
    """Every second of six groups of two episodes of ten decisions; what is known of them is saved."""
    calls: list[int] = []

    def differ(episodes: Sequence[list[Segment]]) -> bool:
        calls.append(episodes[0][0].group)
        return len(calls) % 2 == 0

    arguments = {"length": 4, "step_limit": 10, "group_size": 2, "envs_per_worker": 2, "workers": 1}
    actor, other = (make_actor(on_group=differ, **arguments) for _ in range(2))
    actor.groups.only_contrast = only_contrast
    segments = []
    for _ in range(6):
        for _ in range(10):
            actor.advance()
        actor.finish()
        segments += actor.take_segments()
    assert len(calls) == 6
    assert {segment.group for segment in segments} == set(calls[1::2] if only_contrast else calls)
    counts = actor.groups.counts
    assert (counts.closed, counts.alike) == (6, 3)
    assert counts.left_out == (3 * 2 * 10 if only_contrast else 0)
    batches, values = actor.groups.state(actor.layout)
    other.groups.load_state(batches, json.loads(json.dumps(values)))
    assert other.groups.counts == counts
    other.groups.clear()
    assert other.groups.counts == GroupCounts()


@pytest.mark.parametrize(("successes", "differ"), [((1, 0), True), ((0, 0), False), ((1, 1), False)])
@pytest.mark.parametrize("credit", [GroupSettings, GraphSettings, InformationGainSettings])
def test_contrast_is_of_the_outcome_that_the_credit_judges_by(
    credit: Any, successes: tuple[int, int], differ: bool
) -> None:
    """Rewards that differ in any case, and successes that may not."""

    def episode(success: int, reward: float) -> GroupEpisode:
        rewards = np.full((1, 1), reward, np.float32)
        return GroupEpisode(0, rewards, np.ones(1, np.int64), np.full((1, 1), bool(success)), False)

    group = [episode(success, 0.1 * number) for number, success in enumerate(successes)]
    by_success, by_return = credit(outcome="success_once").build(), credit(outcome="return").build()
    assert (len({by_success.outcome(own) for own in group}) > 1) == differ
    assert len({by_return.outcome(own) for own in group}) == 2
    assert len({Numbering().outcome(own) for own in group}) == 2, "a credit that says nothing of outcomes"


def test_segments_become_episodes(collected: Any) -> None:
    credit, segments, _ = collected()
    assert len(credit.groups) == 3 and all(len(group) == 2 for group in credit.groups)
    for group in credit.groups:
        for env, episode in enumerate(group):
            own = [s for s in segments if s.group == episode.group and s.env == env]
            assert [s.length for s in own] == [4, 4, 2]
            rewards = np.concatenate([s.rewards[: s.length] for s in own])
            np.testing.assert_array_equal(episode.rewards, rewards * np.float32(0.5))
            assert len(episode) == 10 and not episode.terminated
            states = np.concatenate(
                [s.observations["state"][: s.length] for s in own] + [own[-1].observations["state"][[2]]]
            )
            assert states.shape == (11, 10)
            np.testing.assert_array_equal(episode.observations["features"], 2 * states)
            np.testing.assert_allclose(episode.observations["landmarks"], 0.1 * states[:, :6], atol=1e-6)
            assert set(episode.observations) == {"landmarks", "features"}


def test_advantages_are_written_where_their_transitions_are(collected: Any) -> None:
    _, segments, _ = collected()
    for segment in segments:
        length, start = segment.length, segment.start
        np.testing.assert_array_equal(segment.advantages[:length], start + np.arange(length))
        assert not segment.advantages[length:].any()


def test_older_segments_are_those_held_of_the_task_the_newest(collected: Any) -> None:
    credit, segments, ring = collected(older_transitions=25)
    # None are held when the first group closes; 20 transitions then; of 40 the newest 2 + 4 + 4 + 2 + 4 + 4
    # and 2, since 4 more would be above 25.
    assert [sum(len(piece) for piece in older) for older in credit.older] == [0, 20, 22]
    newest = [segment for segment in segments if segment.group == 1]
    pieces = {piece.observations["landmarks"].tobytes() for piece in credit.older[2]}
    for segment in newest:
        assert segment.observations["landmarks"][: segment.length + 1].tobytes() in pieces
    assert all(set(piece.observations) == {"landmarks"} for piece in credit.older[2])
    assert len(ring) == 18


def test_the_ring_hands_out_the_newest_of_a_task(collected: Any) -> None:
    _, _, ring = collected()
    found = ring.newest(0, 10)
    assert [(s.length, s.start, s.group) for s in found] == [(2, 8, 2), (4, 4, 2), (4, 0, 2)]
    assert ring.newest(1, 100) == []
