"""Group-relative advantages, as in GRPO: how much better than its siblings did an episode end?

A group is episodes of the same task from the same initial state. The advantage of an episode, shared by
all its transitions, is its outcome minus the group's mean, divided by the group's standard deviation:

    A_i = (outcome_i - mean) / (std + 1e-6)

with the sample standard deviation (n - 1). A group of one, or one whose outcomes are all equal, says
nothing and gets 0. No value head is needed.

Source: GRPO, arXiv 2402.03300, section 4.1.2; without the division: Dr. GRPO, arXiv 2503.20783, which
found that it favours groups that are almost always or almost never solved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gipo_vla.credit.base import CreditAssigner, CreditSettings, GroupEpisode, register
from gipo_vla.credit.normalization import NormalizationMode, check_normalize

EPSILON = 1e-6

Outcome = Literal["return", "success_once"]


@register
@dataclass(frozen=True)
class GroupSettings(CreditSettings):
    """Group-relative advantages (GRPO): several episodes from one initial state, no value."""

    needs_groups: ClassVar[bool] = True
    sets: ClassVar[Mapping[str, Any]] = {"rollout.group_size": 8}

    name: Literal["group"] = "group"
    outcome: Outcome = "return"
    """return: sum of the episode's scaled rewards, undiscounted. success_once: 1 where any step succeeded;
    for dense rewards that do not rank episodes well."""
    normalize_std: bool = True
    """false leaves out the division (Dr. GRPO): where easy and hard initial states are mixed."""
    normalize: NormalizationMode = "none"
    """A second normalisation over batches, which scales and does not shift; none, since groups are normalised
    already. Where most groups fail altogether, running gives the rest the scale of other credits."""

    def __post_init__(self) -> None:
        check_normalize(self.normalize)

    def build(self) -> CreditAssigner:
        return GroupRelative(self)


def episode_outcome(episode: GroupEpisode, outcome: Outcome) -> float:
    """The measure that an episode is judged by: see ``GroupSettings.outcome``."""
    if outcome == "success_once":
        return float(episode.first_success is not None)
    return float(episode.rewards.sum(where=episode.executed_mask, dtype=np.float64))


def group_relative(outcomes: NDArray[np.float64], normalize_std: bool) -> NDArray[np.float64]:
    """Advantages (G,) of the outcomes (G,) of one group."""
    # Not left to the arithmetic: the mean of equal numbers may round, and their advantage is exactly 0.
    if outcomes.size < 2 or np.ptp(outcomes) == 0:
        return np.zeros_like(outcomes)
    centred = outcomes - outcomes.mean()
    return centred / (outcomes.std(ddof=1) + EPSILON) if normalize_std else centred


class GroupRelative(CreditAssigner):
    """Group-relative advantages as a credit; stateless."""

    needs_groups = True
    needs_values = False

    def __init__(self, settings: GroupSettings) -> None:
        self.settings = settings

    def on_group(
        self, episodes: Sequence[GroupEpisode], older: Sequence[GroupEpisode] = ()
    ) -> list[NDArray[np.float32]]:
        """Advantages (T,) of each episode: one number an episode, at all its transitions."""
        if len({episode.group for episode in episodes}) > 1:
            raise ValueError("on_group takes the episodes of one group")
        outcomes = np.array([episode_outcome(episode, self.settings.outcome) for episode in episodes])
        advantages = group_relative(outcomes, self.settings.normalize_std)
        return [np.full(len(e), a, np.float32) for e, a in zip(episodes, advantages, strict=True)]

    def outcome(self, episode: GroupEpisode) -> float:
        """By ``credit.outcome``."""
        return episode_outcome(episode, self.settings.outcome)
