"""A credit of one's own: the reward that is still to come, compared with that of sibling episodes.

    A_t = G_t - mean over the siblings of G_t,   G_t = r_t + gamma r_(t+1) + gamma^2 r_(t+2) + ...

Siblings are the other episodes of a *group*: the same task from the same initial state. The mean of their
rewards to go at the same decision is a baseline that no network has to learn (leave-one-out, as in RLOO,
arXiv 2402.14740, but for each decision instead of once an episode).

    python -m gipo_vla.train plugins=[examples.own_credit] experiment=point_reach credit=leave_one_out
    python -m gipo_vla.train plugins=[examples.own_credit] --help credit.horizon
    python -m gipo_vla.sweep plugins=[examples.own_credit] experiment=point_reach \
        credit=leave_one_out credit.horizon=5,20 seed=0,1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gipo_envs import UserError
from gipo_vla import credit
from gipo_vla.credit import CreditAssigner, CreditSettings, GroupEpisode, NormalizationMode


@credit.register
@dataclass(frozen=True)
class LeaveOneOutSettings(CreditSettings):
    """Reward to go minus that of sibling episodes, without a value network."""

    needs_groups: ClassVar[bool] = True
    sets: ClassVar[Mapping[str, Any]] = {"rollout.group_size": 4}

    name: Literal["leave_one_out"] = "leave_one_out"
    horizon: float = 10.0
    """Decisions after which a reward counts a third (1/e); gamma is exp(-1 / horizon). Raise it where what is
    worth doing pays late."""
    normalize: NormalizationMode = "running"
    """As in GAE: by statistics of earlier batches (running), of this one (exact), or not at all (none)."""

    def __post_init__(self) -> None:
        if not 0 < self.horizon < float("inf"):
            raise UserError(f"credit.horizon is {self.horizon}: it must be above 0; 5 to 100 is usual")

    def build(self) -> CreditAssigner:
        return LeaveOneOut(self)


class LeaveOneOut(CreditAssigner):
    """The credit: advantages are made when a group is complete and stored until they are drawn."""

    needs_groups = True
    needs_values = False

    def __init__(self, settings: LeaveOneOutSettings) -> None:
        self.gamma = float(np.exp(-1.0 / settings.horizon))

    def on_group(
        self, episodes: Sequence[GroupEpisode], older: Sequence[GroupEpisode] = ()
    ) -> list[NDArray[np.float32]]:
        """Advantages (T,) of each episode; after its end an episode's reward to go is 0."""
        to_go = np.zeros((len(episodes), max(map(len, episodes)) + 1))
        for row, episode in zip(to_go, episodes):
            rewards = episode.rewards.sum(axis=1, where=episode.executed_mask)
            for t in reversed(range(len(episode))):
                row[t] = rewards[t] + self.gamma * row[t + 1]
        siblings = (to_go.sum(axis=0) - to_go) / max(len(episodes) - 1, 1)
        return [
            (own - other)[: len(episode)].astype(np.float32)
            for own, other, episode in zip(to_go, siblings, episodes)
        ]
