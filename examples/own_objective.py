"""An objective of one's own: importance sampling whose ratio levels off smoothly at a limit.

    L = -E_mu[ c(rho) A ],  c detached,  c(rho) = limit tanh(rho / limit)

Near the data the coefficient is the ratio itself; a token that the learner has made much more likely pulls
with ``limit`` at most, and none ever stops pulling, as it would under PPO's clip.

Everything that the commands need is in this file. Train, look up its setting, compare two of its values:

    python -m gipo_vla.train plugins=[examples.own_objective] experiment=point_reach objective=soft_truncation
    python -m gipo_vla.train plugins=[examples.own_objective] --help objective.limit
    python -m gipo_vla.sweep plugins=[examples.own_objective] experiment=point_reach \
        objective=soft_truncation objective.limit=1,4 seed=0,1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gipo_envs import UserError
from gipo_vla import objectives
from gipo_vla.objectives import Surrogate
from gipo_vla.objectives.base import finite_exp


@objectives.register
@dataclass(frozen=True)
class SoftTruncationSettings:
    """Importance sampling with a ratio that levels off at a limit."""

    name: Literal["soft_truncation"] = "soft_truncation"
    limit: float = 2.0
    """Largest coefficient of a token. Lower it where stale data make training unstable; 1 damps fresh data
    too, by a quarter."""

    def __post_init__(self) -> None:
        if not 0 < self.limit < float("inf"):
            raise UserError(f"objective.limit is {self.limit}: it must be above 0; 1 to 4 is usual")

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """Loss -c A, with the coefficient c of every token (N, K, D)."""
        coefficient = self.limit * torch.tanh(finite_exp(log_ratio) / self.limit)
        return Surrogate(-coefficient * advantages, coefficient)
