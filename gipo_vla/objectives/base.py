"""The contract of objectives, their registry, and the one place where gradients are attached.

Every objective here is a function of two numbers per action token: the log-ratio and the advantage. From
them it says what the loss is worth and how strongly the token pulls: its *coefficient*, the factor c in

    gradient of the loss = -c * A * grad log pi(token).

No-Clip has c = rho, GIPO c = w(rho) rho, PPO c = rho or 0, SAPO c = rho gate'(rho). Writing all of them
this way (instead of differentiating through ``exp``) keeps every objective finite in float32 whatever the
staleness, makes "detached" a property of the code's shape rather than of a remembered ``.detach()``, and
gives the diagnostics of staleness one quantity that means the same thing for all objectives.

Reducing the per-token loss (sum over valid tokens / global count of valid tokens) is the learner's.

Shape suffixes: N transitions, K steps of a chunk, D action dimensions (tokens a step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gipo_vla.registry import Registry

LARGEST_EXPONENT = 60.0
"""exp(60) is 1e26: finite in float32, and so are sums of it over any batch and products with any advantage
(float32 ends at 3e38). Only objectives without a bound of their own ever meet it."""


class Surrogate(NamedTuple):
    """One objective evaluated per token; same shape as the log-ratios, no gradient."""

    loss: Tensor
    """Value of the loss."""
    coefficient: Tensor
    """What multiplies A * grad log pi in the negative gradient of the loss; never negative."""


class ObjectiveOutput(NamedTuple):
    """What ``objective_loss`` returns; everything is float32 (N, K, D) and zero where masked."""

    loss: Tensor
    """Per-token loss; the only one that carries a gradient."""
    coefficient: Tensor
    """See ``Surrogate``."""
    log_ratio: Tensor
    """log pi - log mu."""


class ObjectiveSettings(Protocol):
    """Settings of any objective: a frozen dataclass whose ``name`` says which."""

    @property
    def name(self) -> str: ...


SurrogateFunction = Callable[[Tensor, Tensor, Any], Surrogate]
"""(log_ratio, advantages, settings) -> Surrogate: pure, elementwise, dtype-preserving, and not to be
differentiated through. Arguments broadcast. The third argument is the objective's own settings class."""

surrogates: Registry[SurrogateFunction] = Registry("objective", "objective.name")
"""The surrogates by the ``name`` of their settings classes."""
register, get, names = surrogates.register, surrogates.get, surrogates.names


def objective_loss(
    log_probs: Tensor,
    behaviour_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    settings: ObjectiveSettings,
) -> ObjectiveOutput:
    """Per-token loss of the objective that ``settings`` belongs to.

    Args:
        log_probs: (N, K, D) of the taken tokens under the learner policy; differentiable.
        behaviour_log_probs: (N, K, D) of the same tokens under the policy that sampled them, at the
            same temperature.
        advantages: (N,) or broadcastable to (N, K, D). One a transition: every token of a chunk shares it.
        mask: bool (N, K, D), true at valid tokens. What stands at other tokens is never looked at, NaN
            included.
    """
    log_ratio = torch.where(mask, log_probs.detach().float() - behaviour_log_probs.detach().float(), 0.0)
    advantages = advantages.detach().float()
    if advantages.dim() == 1:
        advantages = advantages[:, None, None]
    advantages = torch.where(mask, advantages, 0.0)
    surrogate = get(settings.name)(log_ratio, advantages, settings)

    coefficient = torch.where(mask, surrogate.coefficient, 0.0)
    # Worth exactly zero, with gradient 1 for each log-prob: carries the gradient, leaves the value alone.
    valid_log_probs = torch.where(mask, log_probs.float(), 0.0)
    carrier = valid_log_probs - valid_log_probs.detach()
    loss = torch.where(mask, surrogate.loss, 0.0) - coefficient * advantages * carrier
    return ObjectiveOutput(loss, coefficient, log_ratio)


def finite_exp(exponent: Tensor) -> Tensor:
    """exp that stays finite (see ``LARGEST_EXPONENT``); small results still underflow to exactly 0."""
    return exponent.clamp(max=LARGEST_EXPONENT).exp()


def by_sign(advantages: Tensor, positive: float, otherwise: float) -> Tensor:
    """A setting that depends on the advantage: ``positive`` where it is above 0; dtype of ``advantages``."""
    return torch.where(advantages > 0, torch.full_like(advantages, positive), otherwise)
