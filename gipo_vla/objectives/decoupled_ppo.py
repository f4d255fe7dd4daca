"""Decoupled PPO: the clip box stands around a proximal policy p between the behaviour policy and the learner.

    L = -E_mu[ (p / mu) min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) ],   r = pi / p,  p / mu detached

PPO keeps the learner near the policy that acted; on old data that policy is far away, and the box holds the
learner where it was long ago. Here p / mu corrects for who acted, and the box only limits the step from p.

Two proximal policies:

    interpolated    log p = log mu + alpha log(pi / mu), alpha = (v_p - v_mu) / (v_pi - v_mu), by the
                    versions v of the policies; v_p = v_pi - 1, one update back. With lag = v_pi - v_mu,
                    alpha is (lag - 1) / lag and log r is log(pi / mu) / lag; with no lag p is mu. It
                    costs nothing.
    synchronized    the policy that acts now: the learner as it was last copied, with a forward of its
                    own. With ``rollout.sync_every`` equal to ``learner.updates`` that is the learner at
                    the start of the iteration.

Tokens with p / mu above ``behaviour_cap`` are dropped, or their weight is truncated there.

Source: decoupled PPO, arXiv 2505.24298, the decoupled objective (after Hilton et al., arXiv 2110.00641);
the interpolation is A-3PO's log-linear one, arXiv 2512.06547. The cap is that of the authors' code,
github.com/inclusionAI/AReaL (``behav_imp_weight_cap`` 5 with ``token_mask``, later ``rejection_sampling``);
its dual clip is off there, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from gipo_envs.errors import UserError
from gipo_vla.objectives.base import Surrogate, Tokens, by_sign, finite_exp, register, required
from gipo_vla.objectives.box import clipped


@register
@dataclass(frozen=True)
class DecoupledPpoSettings:
    """PPO whose clip box stands around a policy one update back instead of around the one that acted."""

    name: Literal["decoupled_ppo"] = "decoupled_ppo"
    clip_low: float = 0.2
    """The ratio to the proximal policy is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio to the proximal policy is clipped above at 1 + clip_high."""
    proximal: Literal["interpolated", "synchronized"] = "interpolated"
    """interpolated guesses the proximal policy, one update back, from the lag, for nothing; synchronized
    takes the policy that acts now, at the cost of one forward, and wants rollout.sync_every above 1."""
    behaviour_cap: float | None = 5.0
    """Largest weight p / mu of the proximal policy over the behaviour policy. None: no limit."""
    beyond_cap: Literal["drop", "truncate"] = "drop"
    """What happens to a token above the cap: drop leaves it out, as the authors do; truncate caps its
    weight."""

    def __post_init__(self) -> None:
        if not 0 < self.clip_low < 1:
            raise UserError(
                f"objective.clip_low is {self.clip_low}: it must be between 0 and 1; 0.2 is usual"
            )
        if not 0 < self.clip_high < float("inf"):
            raise UserError(f"objective.clip_high is {self.clip_high}: it must be above 0; 0.2 is usual")
        if self.behaviour_cap is not None and not 1 <= self.behaviour_cap < float("inf"):
            raise UserError(
                f"objective.behaviour_cap is {self.behaviour_cap}: it must be at least 1, or null for none; "
                "5 is usual"
            )
        for field, value, known in (
            ("proximal", self.proximal, ("interpolated", "synchronized")),
            ("beyond_cap", self.beyond_cap, ("drop", "truncate")),
        ):
            if value not in known:
                raise UserError(f"objective.{field} is {value}: it must be {' or '.join(known)}")

    @property
    def needs_proximal(self) -> bool:
        """An interpolated policy needs no forward."""
        return self.proximal == "synchronized"

    def surrogate_of(self, tokens: Tokens) -> Surrogate:
        """The coefficient is (p / mu) (pi / p) inside the box or on the way back to it, else exactly 0."""
        log_ratio, advantages = tokens.log_ratio, tokens.advantages
        if self.needs_proximal:
            log_weight = required(tokens.proximal_log_ratio, self.name, "proximal_log_probs")
        else:
            lag = required(tokens.lag, self.name, "lag").to(log_ratio.dtype)
            log_weight = (lag - 1).clamp(min=0) / lag.clamp(min=1) * log_ratio
        bound = by_sign(advantages, math.log1p(self.clip_high), math.log1p(-self.clip_low))
        step, active = clipped(log_ratio - log_weight, advantages, bound)
        if self.behaviour_cap is not None:
            cap = math.log(self.behaviour_cap)
            if self.beyond_cap == "drop":
                step = torch.where(log_weight > cap, -torch.inf, step)
            log_weight = log_weight.clamp(max=cap)
        weight = finite_exp(log_weight + step)
        return Surrogate(-weight * advantages, torch.where(active, weight, 0.0))
