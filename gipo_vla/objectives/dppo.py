"""DPPO with total variation: a token is left out by how far its probability moved, not by its ratio.

    L = -E_mu[ c A log pi ],  c = min(rho, ratio_cap) where the token is within the region, else 0, detached
    within:  pi - mu <= delta_high where A > 0,   pi - mu >= -delta_low elsewhere

|pi - mu| of the taken token bounds the total variation of the two distributions from below (it is that of
the distributions "this token or another"). A token with mu = 1e-5 and pi = 1e-3 has a ratio of 100, which
PPO clips, and has hardly moved; one that falls from 0.99 to 0.8 has moved a fifth of the distribution, and
PPO does not see it. With 256 bins that are nearly uniform, no probability can move by 0.15: then nothing is
left out but by ``ratio_cap``.

Source: DPPO, arXiv 2602.04879, the binary total variation; github.com/sail-sg/Stable-RL
(``dppo_binary_tv``) and github.com/volcengine/verl (``compute_policy_loss_dppo_tv``), whose cap 20 and
whose example's threshold 0.15 are the defaults. What the loss is reported to be worth is -c A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from gipo_envs.errors import UserError
from gipo_vla.objectives.base import Surrogate, Tokens, finite_exp, register


@register
@dataclass(frozen=True)
class DppoSettings:
    """Importance sampling without the tokens whose probability has moved far; rare tokens are not clipped for
    nothing."""

    name: Literal["dppo"] = "dppo"
    delta_low: float = 0.15
    """A token with A <= 0 is left out once its probability has fallen by more than this."""
    delta_high: float = 0.15
    """A token with A > 0 is left out once its probability has risen by more than this."""
    ratio_cap: float = 20.0
    """Largest ratio that a token is weighted with."""

    def __post_init__(self) -> None:
        for field in ("delta_low", "delta_high"):
            value = getattr(self, field)
            if not 0 < value <= 1:
                raise UserError(
                    f"objective.{field} is {value}: it must be above 0 and at most 1; 0.15 is usual"
                )
        if not 1 <= self.ratio_cap < float("inf"):
            raise UserError(f"objective.ratio_cap is {self.ratio_cap}: it must be at least 1; 20 is usual")

    @property
    def needs_proximal(self) -> bool:
        """Its region stands around the policy that acted."""
        return False

    def surrogate_of(self, tokens: Tokens) -> Surrogate:
        """The coefficient is the truncated ratio within the region, else exactly 0."""
        behaviour = tokens.behaviour_log_probs
        moved = (behaviour + tokens.log_ratio).exp() - behaviour.exp()
        within = torch.where(tokens.advantages > 0, moved <= self.delta_high, moved >= -self.delta_low)
        ratio = finite_exp(tokens.log_ratio.clamp(max=math.log(self.ratio_cap)))
        coefficient = torch.where(within, ratio, 0.0)
        return Surrogate(-coefficient * tokens.advantages, coefficient)
