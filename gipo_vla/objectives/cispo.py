"""CISPO: the importance weight is clipped, not the update; and truncated importance sampling (TIS).

    L = -E_mu[ c A log pi ],  c = clip(rho, 1 - clip_low, 1 + clip_high), detached

No token ever stops teaching, as it does under PPO's clip: a token that has become much more likely pulls with
1 + clip_high. Without a lower bound, which is the authors' setting, this is truncated importance sampling,
c = min(rho, truncation), written with another number; ``truncation`` says it that way.

Source: CISPO in MiniMax-M1, arXiv 2506.13585 (where the lower bound is off and only the
upper one was tuned; its value is not given, 0.2 is that of the public code in github.com/volcengine/verl,
``compute_policy_loss_cispo``). Truncated importance sampling: Ionides, Journal of Computational and
Graphical Statistics 17 (2008). What the loss is reported to be worth is -c A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.objectives.base import Surrogate, finite_exp, register


@register
@dataclass(frozen=True)
class CispoSettings:
    """Importance sampling with a clipped weight: every token keeps a gradient, none above a bound."""

    name: Literal["cispo"] = "cispo"
    clip_high: float = 0.2
    """The weight is at most 1 + clip_high."""
    clip_low: float | None = None
    """The weight is at least 1 - clip_low. None: no lower bound, as in the source. With a bound, old tokens
    that the learner has abandoned keep pulling."""
    truncation: float | None = None
    """Truncated importance sampling: the weight is min(rho, truncation), whatever clip_high says. None:
    CISPO."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_high < float("inf"):
            raise UserError(f"objective.clip_high is {self.clip_high}: it must be above 0; 0.2 is usual")
        if self.clip_low is not None and not 0 < self.clip_low <= 1:
            raise UserError(
                f"objective.clip_low is {self.clip_low}: it must be above 0 and at most 1, or null for none"
            )
        if self.truncation is not None and not 1 <= self.truncation < float("inf"):
            raise UserError(
                f"objective.truncation is {self.truncation}: it must be at least 1, or null for CISPO; "
                "2 is usual"
            )
        if self.truncation is not None and self.clip_low is not None:
            raise UserError(
                f"objective.clip_low is {self.clip_low}: truncated importance sampling "
                "(objective.truncation) has no lower bound; set one of the two to null"
            )

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """Loss -c A with the clipped weight c as its coefficient."""
        highest = 1 + self.clip_high if self.truncation is None else self.truncation
        lowest = 0.0 if self.clip_low is None else 1 - self.clip_low
        weight = finite_exp(log_ratio.clamp(max=math.log(highest))).clamp(lowest, highest)
        return Surrogate(-weight * advantages, weight)
