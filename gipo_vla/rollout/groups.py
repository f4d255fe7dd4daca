"""Groups of episodes between the actor and the replay.

A *group* is all episodes of one task from one initial state on one rank. With a credit that compares them,
closed segments wait here until the last episode of their group has ended; then the credit writes its
advantages into them, and they are released together. Segments of any other run are released as they close.

    EpisodeGroups     which segments wait, which group is complete, and whether it is left out
    GroupAdvantages   a complete group on its way through a credit: segments joined to episodes, advantages
                      written back
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_vla.credit.base import FEATURES, CreditAssigner, GroupEpisode
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.replay.segment import Segment, SegmentBatch, SegmentLayout
from gipo_vla.rollout.episodes import EpisodePlan

GroupHook = Callable[[Sequence[list[Segment]]], bool]
"""Gets the episodes of a complete group, each as its segments in order, and writes their advantages; returns
whether the outcomes differ."""

Features = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]
"""A policy's description (n, F) of observations (arrays (n, ...) by name)."""


@dataclass
class GroupCounts:
    """What became of the groups of one iteration, on this rank."""

    closed: int = 0
    """Groups whose last episode ended."""
    alike: int = 0
    """Those in which all outcomes are equal."""
    left_out: int = 0
    """Transitions of groups that were left out for it, and are to be replaced."""
    replaced: int = 0
    """Transitions that were collected in their place."""
    rounds: int = 0
    """Rounds of collection in which that was done."""


class EpisodeGroups:
    """Closed segments until the replay takes them.

    Args:
        on_group: see ``GroupHook``; None: segments are released as they close.
        size: episodes a group.
        only_contrast: leave out groups in which all outcomes are equal.
    """

    def __init__(self, on_group: GroupHook | None = None, size: int = 1, only_contrast: bool = False) -> None:
        self.on_group, self.size, self.only_contrast = on_group, size, only_contrast
        self.dropped_segments = 0
        """Segments lost with a failed worker, with those of the groups it spoilt."""
        self.clear()

    def clear(self) -> None:
        """Forget every segment and every group."""
        self.counts = GroupCounts()
        self._released: list[Segment] = []
        self._waiting: dict[int, dict[int, list[Segment]]] = {}
        """Closed segments of unfinished groups, by group and environment."""
        self._finished: dict[int, set[int]] = {}
        """Environments whose episode of the group has ended, by group."""
        self._lost: set[int] = set()
        """Groups that lost a member."""

    def add(self, segment: Segment) -> None:
        """Take in a segment that was closed."""
        if self.on_group is None or segment.group < 0:
            self._released.append(segment)
        elif segment.group in self._lost:
            self.dropped_segments += 1
        else:
            self._waiting.setdefault(segment.group, {}).setdefault(segment.env, []).append(segment)

    def end_episode(self, plan: EpisodePlan) -> None:
        """Take note that an episode has ended; its segments were added before."""
        if plan.group not in self._waiting:
            return
        members = self._finished.setdefault(plan.group, set())
        members.add(plan.env)
        if len(members) < self.size:
            return
        assert self.on_group is not None
        own = self._waiting.pop(plan.group)
        del self._finished[plan.group]
        episodes = [own[env] for env in sorted(own)]
        differ = self.on_group(episodes)
        segments = [segment for episode in episodes for segment in episode]
        self.counts.closed += 1
        self.counts.alike += not differ
        if self.only_contrast and not differ:
            self.counts.left_out += sum(segment.length for segment in segments)
        else:
            self._released += segments

    def lose_episode(self, plan: EpisodePlan, open_segments: int) -> None:
        """Drop the group of an episode whose simulator was lost.

        Args:
            open_segments: segments of the episode that were lost before they closed.
        """
        self.dropped_segments += open_segments
        if plan.group >= 0:
            self._lost.add(plan.group)
            self.dropped_segments += sum(len(own) for own in self._waiting.pop(plan.group, {}).values())
            self._finished.pop(plan.group, None)

    def take(self) -> list[Segment]:
        """The segments released since the last call: in environment order, or in that of their groups. Either
        way the order does not depend on which worker was faster."""
        released, self._released = self._released, []
        if self.on_group is None:
            return sorted(released, key=lambda segment: (segment.env, segment.episode, segment.start))
        return sorted(released, key=lambda segment: segment.group)

    # ------------------------------------------------------------------------------------------- run state

    def state(self, layout: SegmentLayout) -> tuple[dict[str, SegmentBatch], dict[str, Any]]:
        """Everything a checkpoint must keep, as batches of segments and as plain values."""
        waiting = [segment for group in self._waiting.values() for own in group.values() for segment in own]
        batches = {"closed": layout.stack(self._released), "waiting": layout.stack(waiting)}
        return batches, {
            "dropped_segments": self.dropped_segments,
            "finished_members": [[group, sorted(envs)] for group, envs in self._finished.items()],
            "lost_groups": sorted(self._lost),
            "group_counts": asdict(self.counts),
        }

    def load_state(self, batches: Mapping[str, SegmentBatch], values: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.clear()
        self._released = [segment.copy(segment.length) for segment in batches["closed"]]
        for segment in batches["waiting"]:
            group = self._waiting.setdefault(segment.group, {})
            group.setdefault(segment.env, []).append(segment.copy(segment.length))
        self.dropped_segments = values["dropped_segments"]
        self._finished = {group: set(envs) for group, envs in values["finished_members"]}
        self._lost = set(values["lost_groups"])
        self.counts = GroupCounts(**values.get("group_counts", {}))


class GroupAdvantages:
    """The ``GroupHook`` of a credit.

    Args:
        credit: whose ``on_group`` is asked.
        reward_scale: multiplies rewards.
        replay: where older segments are looked up, for credits that want some.
        features: for credits that read the policy's features.
    """

    def __init__(
        self, credit: CreditAssigner, reward_scale: float, replay: SegmentRing, features: Features
    ) -> None:
        self.credit, self.reward_scale = credit, np.float32(reward_scale)
        self.replay, self.features = replay, features
        self._held: dict[int, list[GroupEpisode]] = {}
        """Older segments by task, of the replay as it was after ``_added`` segments."""
        self._added = -1

    def __call__(self, episodes: Sequence[list[Segment]]) -> bool:
        """Write the advantages of a complete group into its segments, each episode given in order; returns
        whether the outcomes differ."""
        group = [self.episode(segments) for segments in episodes]
        advantages = self.credit.on_group(group, self._older(group[0].task))
        for segments, own in zip(episodes, advantages, strict=True):
            at = 0
            for segment in segments:
                segment.advantages[: segment.length] = own[at : at + segment.length]
                at += segment.length
        return len({self.credit.outcome(episode) for episode in group}) > 1

    def episode(self, segments: Sequence[Segment]) -> GroupEpisode:
        """Consecutive segments of an episode as one piece (copies)."""
        last = segments[-1]

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(segment, name)[: segment.length] for segment in segments])

        def observed(name: str) -> NDArray[Any]:
            parts = [segment.observations[name][: segment.length] for segment in segments]
            return np.concatenate([*parts, last.observations[name][last.length][None]])

        names = self.credit.inputs
        observations = {name: observed(name) for name in names if name != FEATURES}
        if FEATURES in names:
            observations[FEATURES] = self.features({name: observed(name) for name in last.observations})
        return GroupEpisode(
            group=last.group,
            rewards=joined("rewards") * self.reward_scale,
            executed=joined("executed"),
            success=joined("success"),
            terminated=last.terminated,
            observations=observations,
            task=last.task,
        )

    def _older(self, task: int) -> list[GroupEpisode]:
        most = self.credit.older_transitions
        if not most:
            return []
        if self._added != self.replay.added:
            self._held, self._added = {}, self.replay.added
        if task not in self._held:
            self._held[task] = [self.episode([segment]) for segment in self.replay.newest(task, most)]
        return self._held[task]
