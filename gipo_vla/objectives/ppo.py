"""PPO's clipped surrogate.

    L = -E_mu[ min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) ]

A token whose ratio has already moved past the clip range in the direction that its advantage asks for gets
no gradient at all: on stale data, most of them.

Source: PPO, arXiv 1707.06347, equation 7; the separate upper bound ("clip higher") is DAPO's, arXiv
2503.14476. Without the dual clip: for A < 0 the coefficient grows with rho, as in the original.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.objectives.base import Surrogate, finite_exp, register


@register
@dataclass(frozen=True)
class PpoSettings:
    """PPO's clipped surrogate: no gradient once the ratio has left the box on the side the advantage pushes
    to."""

    name: Literal["ppo"] = "ppo"
    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low. Lower it where training is unstable."""
    clip_high: float = 0.2
    """The ratio is clipped above at 1 + clip_high. Raise it (0.28) where entropy collapses."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1:
            raise UserError(
                f"objective.clip_low is {self.clip_low}: it must be between 0 and 1; 0.2 is usual"
            )
        if not 0 < self.clip_high < float("inf"):
            raise UserError(
                f"objective.clip_high is {self.clip_high}: it must be above 0; 0.2 to 0.3 is usual"
            )

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """The coefficient is rho inside the clip range or on its way back to it, else exactly 0."""
        ratio = finite_exp(log_ratio)
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantages, clipped * advantages)
        active = torch.where(
            advantages > 0,
            log_ratio <= math.log1p(self.clip_high),
            log_ratio >= math.log1p(-self.clip_low),
        )
        return Surrogate(loss, torch.where(active, ratio, 0.0))
