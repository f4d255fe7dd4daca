"""M2PO: PPO whose box is as wide as the second moment of the log-ratios of the whole batch allows.

Of the tokens that move further where their advantage pushes, past the policy that acted (A > 0 and rho > 1,
or A < 0 and rho < 1), the squared log-ratios x^2 are capped at tau^2 so that

    sum min(x^2, tau^2) <= budget * count,

and tau is the largest |x| of the batch for which that holds. Then PPO with the box [e^-tau, e^tau]:

    L = -E_mu[ min(rho A, clip(rho, e^-tau, e^tau) A) ]

Where the mean of x^2 is within the budget there is no box at all; and it is never narrower than
[1 - least_low, 1 + least_high]. So few tokens are clipped however old the data, but these are the furthest.

tau is a number of the whole update. It is computed from a forward without gradient over all its
micro-batches, before the first backward pass, and from the tokens of all ranks: the update costs one
forward more. (The authors' code computes it for each micro-batch by itself.)

Source: M2PO, arXiv 2510.01161; the solution for tau and the smallest box are those of the authors' code,
github.com/Infini-AI-Lab/M2PO, ``compute_m2po_policy_loss``, whose scripts run without a smallest box (0
here). A token exactly at the bound keeps its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.objectives.base import Surrogate, Tokens, finite_exp, register, required
from gipo_vla.objectives.box import clipped


@register
@dataclass(frozen=True)
class M2poSettings:
    """PPO with a box as wide as a budget on the batch's squared log-ratios allows: clips few tokens of old
    data."""

    name: Literal["m2po"] = "m2po"
    budget: float = 0.04
    """Largest mean of (log rho)^2 over the tokens that move further where their advantage pushes. Raise it
    where too much is clipped."""
    least_low: float = 0.3
    """The ratio is never clipped above 1 - least_low. 0 for none, as in the authors' scripts."""
    least_high: float = 0.5
    """The ratio is never clipped below 1 + least_high. 0 for none."""

    def __post_init__(self) -> None:
        if not 0 < self.budget < float("inf"):
            raise UserError(f"objective.budget is {self.budget}: it must be above 0; 0.04 is usual")
        if not 0 <= self.least_low < 1:
            raise UserError(
                f"objective.least_low is {self.least_low}: it must be at least 0 and below 1; 0.3 is usual"
            )
        if not 0 <= self.least_high < float("inf"):
            raise UserError(f"objective.least_high is {self.least_high}: it must be at least 0; 0.5 is usual")

    @property
    def needs_proximal(self) -> bool:
        """Its box stands around the policy that acted."""
        return False

    def batch_statistics(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """float64 (2,): tau, infinite where there is no box, and the second moment of the harmful tokens.

        Args:
            log_ratio, advantages, mask: (T,) of all tokens of one update.
        """
        x, mask = log_ratio.double(), mask.bool()
        harmful = mask & (((advantages > 0) & (x > 0)) | ((advantages < 0) & (x < 0)))
        squares = torch.where(harmful, x.square(), torch.inf).flatten().sort().values
        count = harmful.sum()
        place = torch.arange(squares.numel(), device=squares.device)
        own = place < count
        squares = torch.where(own, squares, 0.0)
        sums = squares.cumsum(0)
        # What remains when everything from this token on is capped at its own square; grows with the place.
        capped = sums + squares * (count - 1 - place)
        within = own & (capped < self.budget * count)
        tau = torch.where(within, squares, 0.0).max().sqrt()
        total = squares.sum()
        tau = torch.where(total > self.budget * count, tau, torch.inf)
        return torch.stack([tau, total / count.clamp(min=1)])

    def statistics_metrics(self, statistics: Sequence[float]) -> dict[str, float]:
        """The half width of the box in nats (left out where there is none), whether there is one, and the
        second moment that decides."""
        tau, second_moment = statistics
        metrics = {"objective/second_moment": second_moment, "objective/boxed": float(math.isfinite(tau))}
        return metrics | ({"objective/tau": tau} if math.isfinite(tau) else {})

    def surrogate_of(self, tokens: Tokens) -> Surrogate:
        """The coefficient is rho inside the box or on the way back to it, else exactly 0."""
        statistics = required(tokens.statistics, self.name, "statistics (of batch_statistics)")
        tau = statistics[0].to(tokens.log_ratio.dtype)
        high, low = tau.clamp(min=math.log1p(self.least_high)), -tau.clamp(min=-math.log1p(-self.least_low))
        bound = torch.where(tokens.advantages > 0, high, low)
        log_ratio, active = clipped(tokens.log_ratio, tokens.advantages, bound)
        ratio = finite_exp(log_ratio)
        return Surrogate(-ratio * tokens.advantages, torch.where(active, ratio, 0.0))
