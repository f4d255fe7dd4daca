"""Generalised advantage estimation over action chunks, with an optional V-trace correction.

A decision executes up to K actions open loop, so a transition lasts ``executed`` steps. The discount gamma
is per step, lambda per decision. With n = executed and V' the value after the transition:

    R       = sum over i < n of gamma^i r_i
    delta_t = R_t + gamma^n_t V'_t - V_t
    A_t     = delta_t + gamma^n_t lambda C_(t+1)
    C_t     = c_t A_t,   C after the segment = 0
    target  = V_t + C_t

With c = 1 this is GAE (arXiv 1506.02438, equation 16) for semi-Markov decisions; K = 1 is the textbook
case. With c = min(1, rho), rho of the whole chunk, it is V-trace (IMPALA, arXiv 1802.01561, equation 1,
with both truncation levels 1): targets stay those of a policy near the learner's even where the data is
old. The advantage of the decision itself is left uncorrected, because correcting it is the objective's.

V' is the next value within the segment, and at the segment's last valid transition the bootstrap value;
0 where the task terminated there. A cut within an episode is no termination, nor is a step limit, unless
``step_limit=terminal`` makes it one, as older code does.

Shape suffixes: N segments, L transitions of a segment, K steps of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.credit.base import CreditAssigner, CreditBatch, CreditOutput, CreditSettings, register
from gipo_vla.credit.normalization import NORMALIZED_LIMIT, NormalizationMode, check_normalize


@register
@dataclass(frozen=True)
class GaeSettings(CreditSettings):
    """Generalised advantage estimation, on values of the network as it is at the update."""

    name: Literal["gae"] = "gae"
    gamma: float = 0.995
    """Discount of an env step (where an action is held for several, the pipeline hands on their product).
    Raise towards 1 for long tasks with a sparse reward."""
    gae_lambda: float = 0.95
    """Lambda of a decision. Lower it where the value is good and returns are noisy, 1 for pure returns."""
    values: Literal["recomputed", "stored"] = "recomputed"
    """recomputed: from the value net at the time of the update, in the forward that trains anyway; what
    stale data needs. stored: from the value net that acted, as in older code; for comparison. The learner
    chooses which of the two it hands over; the arithmetic is the same."""
    importance_correction: Literal["none", "vtrace"] = "none"
    """vtrace corrects the targets for the policies' difference along the segment. For one action token or
    few: over a chunk of 56 tokens the product of ratios is close to 0 or noise."""
    step_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    """bootstrap: an episode that meets ``env.step_limit`` would have gone on, and the value of what follows
    counts. terminal: it has ended, as in older code; for comparison."""
    normalize: NormalizationMode = "running"
    """running: statistics of earlier batches; exact: of this one, by an extra pass; none."""
    normalized_limit: float = NORMALIZED_LIMIT
    """normalize=running: normalised advantages are clamped to plus or minus this. Lower it (2 to 3) where a
    few large ones, such as the first successes, should not outweigh the rest."""

    def __post_init__(self) -> None:
        for key, value, usual in (
            ("gamma", self.gamma, "0.99 to 0.999"),
            ("gae_lambda", self.gae_lambda, "0.95"),
        ):
            if not 0 <= value <= 1:
                raise UserError(f"credit.{key} is {value}: it must be between 0 and 1; {usual} is usual")
        check_normalize(self.normalize)
        if not 0 < self.normalized_limit < math.inf:
            raise UserError(
                f"credit.normalized_limit is {self.normalized_limit}: it must be above 0; 2 to 10 is usual"
            )

    def build(self) -> CreditAssigner:
        return Gae(self)

    @property
    def uses_stored_values(self) -> bool:
        return self.values == "stored"

    def per_action(self, action_repeat: int) -> Self:
        return replace(self, gamma=self.gamma**action_repeat)


def chunk_returns(rewards: Tensor, executed: Tensor, gamma: float) -> Tensor:
    """Discounted reward (...) of each chunk: sum over i < executed of gamma^i rewards (..., K)."""
    step = torch.arange(rewards.shape[-1], device=rewards.device)
    weights = torch.full_like(step, gamma, dtype=torch.float32) ** step
    return torch.where(step < executed.unsqueeze(-1), rewards * weights, 0.0).sum(-1)


def next_values(values: Tensor, bootstrap_values: Tensor, mask: Tensor, terminated: Tensor) -> Tensor:
    """Value (N, L) after each transition: the next one, the bootstrap value, or 0 at a termination."""
    following_valid = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    at_end = torch.where(terminated, 0.0, bootstrap_values)
    return torch.where(following_valid, following, at_end.unsqueeze(1))


def generalized_advantages(
    returns: Tensor,
    discounts: Tensor,
    values: Tensor,
    after: Tensor,
    mask: Tensor,
    gae_lambda: float,
    corrections: Tensor | None = None,
) -> CreditOutput:
    """The recursion above over chunk returns, gamma^executed, values before and after, all (N, L).

    ``corrections`` are the c of each transition; None for 1.
    """
    deltas = returns + discounts * after - values
    carry = torch.zeros_like(deltas[:, 0])
    advantages, carries = torch.empty_like(deltas), torch.empty_like(deltas)
    for t in reversed(range(deltas.shape[1])):
        # where, not a product: padding may hold anything.
        advantage = torch.where(mask[:, t], deltas[:, t] + discounts[:, t] * gae_lambda * carry, 0.0)
        carry = advantage if corrections is None else advantage * corrections[:, t]
        advantages[:, t], carries[:, t] = advantage, carry
    return CreditOutput(advantages, torch.where(mask, values + carries, 0.0))


class Gae(CreditAssigner):
    """GAE as a credit; stateless."""

    needs_groups = False
    needs_values = True

    def __init__(self, settings: GaeSettings) -> None:
        self.settings = settings

    @torch.no_grad()
    def on_batch(self, batch: CreditBatch) -> CreditOutput:
        """Advantages and lambda-return targets of drawn segments, in float32."""
        if batch.values is None or batch.bootstrap_values is None:
            raise ValueError("gae needs values and bootstrap_values")
        corrections = None
        if self.settings.importance_correction == "vtrace":
            if batch.log_ratios is None:
                raise ValueError("gae with vtrace needs log_ratios")
            corrections = torch.where(batch.mask, batch.log_ratios.float().clamp(max=0.0), 0.0).exp()
        ended = batch.terminated
        if self.settings.step_limit == "terminal":
            if batch.truncated is None:
                raise ValueError("gae with step_limit=terminal needs truncated")
            ended = ended | batch.truncated
        values = batch.values.float()
        return generalized_advantages(
            chunk_returns(batch.rewards.float(), batch.executed, self.settings.gamma),
            torch.full_like(values, self.settings.gamma) ** batch.executed,
            values,
            next_values(values, batch.bootstrap_values.float(), batch.mask, ended),
            batch.mask,
            self.settings.gae_lambda,
            corrections,
        )
