"""SAPO: a sigmoid gate around rho = 1 instead of PPO's hard clip.

    L = -E_mu[ f(rho) A ],  f(rho) = (4 / tau) sigmoid(tau (rho - 1)),  tau by the sign of A

The gate is differentiated, so its gradient is 4 s (1 - s) rho A grad log pi with s = sigmoid(tau (rho - 1)):
1 at rho = 1 and decaying like exp(-tau rho) above, but only like rho below; far above 1 it underflows to
exactly zero.

Source: SAPO (Soft Adaptive Policy Optimization), arXiv 2511.20347.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.objectives.base import Surrogate, by_sign, register

LARGEST_LOG_RATIO = math.log(1e6)
"""The ratio is clamped to [1e-6, 1e6] as in the reference implementation; outside there is no gradient."""


@register
@dataclass(frozen=True)
class SapoSettings:
    """SAPO: a soft gate on the ratio."""

    name: Literal["sapo"] = "sapo"
    tau_pos: float = 1.0
    """Sharpness of the gate where the advantage is positive. Higher trusts off-policy tokens less."""
    tau_neg: float = 2.0
    """The same where it is not; higher than tau_pos, because pushing down is what destabilises. 2 is what
    GIPO compares with; SAPO's own default is 1.05."""

    def __post_init__(self) -> None:
        for field, value in (("tau_pos", self.tau_pos), ("tau_neg", self.tau_neg)):
            if not 0 < value < float("inf"):
                raise UserError(f"objective.{field} is {value}: it must be above 0; 1 to 2 is usual")

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """Loss -f(rho) A; the coefficient is df / d log rho = 4 rho s (1 - s)."""
        tau = by_sign(advantages, self.tau_pos, self.tau_neg)
        clamped = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        logit = tau * torch.expm1(clamped)
        gate = torch.sigmoid(logit) * 4 / tau
        # In log space: 1 - s rounds to 0 long before s (1 - s) is negligible.
        derivative = (math.log(4) + clamped + F.logsigmoid(logit) + F.logsigmoid(-logit)).exp()
        inside = log_ratio.abs() <= LARGEST_LOG_RATIO
        return Surrogate(-gate * advantages, torch.where(inside, derivative, 0.0))
