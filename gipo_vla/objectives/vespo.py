"""VESPO: one smooth weight for a whole action chunk, from the product of its tokens' ratios.

    L = -E_mu[ phi(W) A log pi ],  phi(W) = e^lambda W^k e^(-lambda W), detached,
    W = exp(sum of log rho over the tokens of the chunk)

phi is 1 at W = 1, falls to 0 on both sides, and has its peak at W = k / lambda: above 1 where pushing away
(k 3, lambda 2), below where pulling towards (k 2, lambda 3), so that a chunk is held close to what acted.

The sequence of the source is an answer of a language model; here it is a chunk, whose tokens share an
advantage. Because the log-ratios of its tokens add up, a chunk of many tokens becomes old sooner than a
token does: with 56 tokens that are independent and each 0.3 nats off, log W has a standard deviation of
2.2.

Source: VESPO, arXiv 2602.10693, and github.com/FloyedShen/VESPO, ``compute_policy_loss_vespo``, with the
values of its scripts: log rho of a token and their sum are clamped at +-20, W at 1e-8 from below, and A = 0
counts as positive. What the loss is reported to be worth is -phi A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.objectives.base import Surrogate, finite_exp, register

LARGEST_LOG_RATIO = 20.0
SMALLEST_WEIGHT = 1e-8


@register
@dataclass(frozen=True)
class VespoSettings:
    """A smooth weight on the ratio of the whole action chunk: soft, bounded, and small for old chunks."""

    name: Literal["vespo"] = "vespo"
    k_pos: float = 2.0
    """Power of the chunk's ratio where the advantage is not negative. Higher damps abandoned chunks more."""
    lambda_pos: float = 3.0
    """Rate at which a growing ratio damps, where the advantage is not negative."""
    k_neg: float = 3.0
    """Power of the chunk's ratio where the advantage is negative."""
    lambda_neg: float = 2.0
    """Rate at which a growing ratio damps, where the advantage is negative."""

    def __post_init__(self) -> None:
        for field in ("k_pos", "lambda_pos", "k_neg", "lambda_neg"):
            value = getattr(self, field)
            if not 0 < value < 50:
                raise UserError(
                    f"objective.{field} is {value}: it must be above 0 and below 50; 2 and 3 are usual"
                )

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """The coefficient phi(W) is the same for all tokens of a chunk, the last two dimensions."""
        tokens = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        chunk = tokens.sum((-2, -1), keepdim=True).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
        pulls = advantages >= 0
        rate = torch.where(pulls, torch.full_like(advantages, self.lambda_pos), self.lambda_neg)
        power = torch.where(pulls, torch.full_like(advantages, self.k_pos), self.k_neg)
        log_weight = chunk.clamp(min=math.log(SMALLEST_WEIGHT))
        coefficient = finite_exp(rate + power * log_weight - rate * chunk.exp()).expand(log_ratio.shape)
        return Surrogate(-coefficient * advantages, coefficient)
