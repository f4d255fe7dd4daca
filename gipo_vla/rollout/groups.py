"""Complete groups of episodes on their way through a credit.

The actor hands over the closed segments of a group; a credit works on whole episodes. Here segments become
``GroupEpisode``s with the arrays that the credit asks for, and its advantages are written back into them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gipo_vla.credit.base import FEATURES, CreditAssigner, GroupEpisode
from gipo_vla.replay.ring import SegmentRing
from gipo_vla.replay.segment import OBSERVATION_PREFIX, Arrays, iterate

Features = Callable[[Arrays], NDArray[np.float32]]
"""A policy's description (n, F) of observations (arrays (n, ...) by name)."""


class GroupAdvantages:
    """The actor's ``GroupHook``.

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

    def __call__(self, episodes: Sequence[list[Arrays]]) -> None:
        """Write the advantages of a complete group into its segments, each episode given in order."""
        group = [self.episode(segments) for segments in episodes]
        advantages = self.credit.on_group(group, self._older(group[0].task))
        for segments, own in zip(episodes, advantages, strict=True):
            at = 0
            for segment in segments:
                length = int(segment["length"])
                segment["advantages"][:length] = own[at : at + length]
                at += length

    def episode(self, segments: Sequence[Arrays]) -> GroupEpisode:
        """Consecutive segments of an episode as one piece."""
        lengths = [int(segment["length"]) for segment in segments]

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([segment[name][:n] for segment, n in zip(segments, lengths)])

        def observed(name: str) -> NDArray[Any]:
            last = segments[-1][OBSERVATION_PREFIX + name][lengths[-1]]
            return np.concatenate([joined(OBSERVATION_PREFIX + name), last[None]])

        names = self.credit.inputs
        observations = {name: observed(name) for name in names if name != FEATURES}
        if FEATURES in names:
            seen = [name.removeprefix(OBSERVATION_PREFIX) for name in segments[0] if _is_observation(name)]
            observations[FEATURES] = self.features({name: observed(name) for name in seen})
        return GroupEpisode(
            group=int(segments[0]["group"]),
            rewards=joined("rewards") * self.reward_scale,
            executed=joined("executed"),
            success=joined("success"),
            terminated=bool(segments[-1]["terminated"]),
            observations=observations,
            task=int(segments[0]["task"]),
        )

    def _older(self, task: int) -> list[GroupEpisode]:
        most = self.credit.older_transitions
        if not most:
            return []
        if self._added != self.replay.added:
            self._held, self._added = {}, self.replay.added
        if task not in self._held:
            self._held[task] = self._look_up(task, most)
        return self._held[task]

    def _look_up(self, task: int, most: int) -> list[GroupEpisode]:
        names = [OBSERVATION_PREFIX + name for name in self.credit.inputs]
        names += ["length", "group", "rewards", "executed", "success", "terminated", "task"]
        return [self.episode([segment]) for segment in iterate(self.replay.newest(task, most, names))]


def _is_observation(name: str) -> bool:
    return name.startswith(OBSERVATION_PREFIX)
