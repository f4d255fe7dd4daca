"""What is added to the objective per token: entropy bonus, KL to the behaviour and to a reference policy.

Directions and estimators. Tokens are sampled from the behaviour policy mu, and rho = pi / mu. Then

    k3 = rho - 1 - log rho,   E_mu[k3] = KL(mu || pi),   E_mu[grad k3] = grad KL(mu || pi),

both without bias, because E_mu[rho] = 1 whatever pi is; every single k3 is >= 0, unlike -log rho. This is
the KL(old || new) that GIPO's reference code computes exactly from stored logits: the direction that
punishes the learner for abandoning what was done, not for trying something new.

Source of k3: Schulman, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html.

Shape suffixes: N transitions, K steps of a chunk, D action dimensions, V bins of a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gipo_envs.errors import UserError

K3_LINEAR_FROM = 5.0
"""Log-ratio from which k3 continues along its tangent."""

KlEstimator = Literal["k3", "exact"]


@dataclass(frozen=True)
class RegularizerSettings:
    """Weights of what is added to the objective; a weight of 0 costs nothing."""

    entropy_coefficient: float = 0.0
    """Raise (0.001 to 0.01) where the policy stops exploring before it succeeds."""
    kl_behaviour_coefficient: float = 0.0
    """Holds the learner near the policies that acted. GIPO's reference code uses 0.1 (exact); raise it
    where the log-ratios of fresh samples run away within one iteration."""
    kl_behaviour: KlEstimator = "k3"
    """k3 needs only the stored log-probs. exact has no sampling noise, but stores bins float16 logits a
    token: for small policies only."""
    kl_reference_coefficient: float = 0.0
    """Holds the learner near its initial weights, where a cloned policy must not be forgotten. Costs one
    more forward of the frozen reference."""
    kl_reference: KlEstimator = "k3"
    """k3 needs the reference's log-probs, exact its logits."""

    def __post_init__(self) -> None:
        for field in ("entropy_coefficient", "kl_behaviour_coefficient", "kl_reference_coefficient"):
            value = getattr(self, field)
            if not 0 <= value < float("inf"):
                raise UserError(f"{field} is {value}: it must be 0 (off) or above; 0.001 to 0.1 is usual")
        for field in ("kl_behaviour", "kl_reference"):
            if getattr(self, field) not in ("k3", "exact"):
                raise UserError(f"{field} is {getattr(self, field)}: it must be k3 or exact")


class RegularizerOutput(NamedTuple):
    """Everything is float32 (N, K, D) and zero where masked; only ``loss`` carries a gradient."""

    loss: Tensor
    """Per-token loss to add to the objective's, weights included."""
    entropy: Tensor
    kl_behaviour: Tensor
    """Nats, by the estimator in force (k3 also where its weight is 0: it is free and worth logging)."""
    kl_reference: Tensor
    """Nats; zeros where its weight is 0."""


def k3(log_ratio: Tensor) -> Tensor:
    """exp(x) - 1 - x, continued along its tangent from x = ``K3_LINEAR_FROM``; differentiable.

    The continuation keeps value and gradient continuous and finite for any x, and the gradient pointing
    back towards x = 0, where a plain clamp would make it vanish for the very tokens that moved furthest.
    """
    slope = math.exp(K3_LINEAR_FROM)
    # relu, not a second clamp: at the joint exactly one of the two branches may pass a gradient.
    tangent = slope * torch.relu(log_ratio - K3_LINEAR_FROM)
    return torch.expm1(log_ratio.clamp(max=K3_LINEAR_FROM)) + tangent - log_ratio


def exact_kl(logits_from: Tensor, logits_to: Tensor) -> Tensor:
    """KL(p_from || p_to) (...) in nats of logits (..., V), in float32; differentiable in both.

    ``logits_from`` may hold -inf at impossible ids.
    """
    log_from = torch.log_softmax(logits_from.float(), dim=-1)
    log_to = torch.log_softmax(logits_to.float(), dim=-1)
    # 0 log 0 = 0, but 0 * inf is NaN.
    difference = torch.where(log_from == -torch.inf, 0.0, log_from - log_to)
    return (log_from.exp() * difference).sum(-1)


def kl_behaviour(
    log_probs: Tensor,
    behaviour_log_probs: Tensor,
    settings: RegularizerSettings,
    logits: Tensor | None = None,
    behaviour_logits: Tensor | None = None,
) -> Tensor:
    """KL(mu || pi) a token (N, K, D): k3, or exact from logits (N, K, D, V)."""
    if settings.kl_behaviour == "k3":
        return k3(log_probs.float() - behaviour_log_probs.float())
    if logits is None or behaviour_logits is None:
        raise UserError(
            "kl_behaviour is exact, but the policy gives no logits: only small policies do; set k3"
        )
    return exact_kl(behaviour_logits.detach(), logits)


def kl_reference(
    log_probs: Tensor,
    reference_log_probs: Tensor | None,
    settings: RegularizerSettings,
    logits: Tensor | None = None,
    reference_logits: Tensor | None = None,
) -> Tensor:
    """KL(pi || reference) a token (N, K, D): k3 as in GRPO (arXiv 2402.03300, equation 4), or exact.

    k3 of log reference - log pi on tokens of the *behaviour* policy is not an unbiased estimate, as GRPO's
    on fresh samples is: read it as a pull towards the reference on the tokens that the data hold, zero
    exactly where both agree. exact has no such caveat.
    """
    if settings.kl_reference == "k3":
        if reference_log_probs is None:
            raise ValueError("kl_reference k3 needs the reference policy's log-probs")
        return k3(reference_log_probs.detach().float() - log_probs.float())
    if logits is None or reference_logits is None:
        raise UserError(
            "kl_reference is exact, but the policy gives no logits: only small policies do; set k3"
        )
    return exact_kl(logits, reference_logits.detach())


def regularizer_loss(
    log_probs: Tensor,
    entropies: Tensor,
    behaviour_log_probs: Tensor,
    mask: Tensor,
    settings: RegularizerSettings,
    *,
    logits: Tensor | None = None,
    behaviour_logits: Tensor | None = None,
    reference_log_probs: Tensor | None = None,
    reference_logits: Tensor | None = None,
) -> RegularizerOutput:
    """Sum of all regularizers a token: -c_H H + c_B KL(mu || pi) + c_R KL(pi || reference).

    Args:
        log_probs, entropies: (N, K, D) of the learner policy; differentiable.
        behaviour_log_probs: (N, K, D).
        mask: bool (N, K, D), true at valid tokens.
        logits, behaviour_logits, reference_logits: (N, K, D, V), divided by the temperature; float16 will
            do for the stored ones. Needed where an exact KL is set.
        reference_log_probs: (N, K, D); needed for ``kl_reference: k3`` with a weight above 0.

    Raises:
        UserError: an exact KL is set and the policy gives no logits.
    """
    # Padding first becomes an on-policy token, so that nothing in it, NaN included, reaches a gradient.
    entropies = torch.where(mask, entropies.float(), 0.0)
    log_probs = torch.where(mask, log_probs.float(), 0.0)
    behaviour_log_probs = torch.where(mask, behaviour_log_probs.float(), 0.0)
    if reference_log_probs is not None:
        reference_log_probs = torch.where(mask, reference_log_probs.float(), 0.0)
    if logits is not None:
        logits = torch.where(mask.unsqueeze(-1), logits.float(), 0.0)

    behaviour = kl_behaviour(log_probs, behaviour_log_probs, settings, logits, behaviour_logits)
    behaviour = torch.where(mask, behaviour, 0.0)
    loss = settings.kl_behaviour_coefficient * behaviour - settings.entropy_coefficient * entropies
    reference = torch.zeros_like(behaviour)
    if settings.kl_reference_coefficient > 0:
        reference = kl_reference(log_probs, reference_log_probs, settings, logits, reference_logits)
        reference = torch.where(mask, reference, 0.0)
        loss = loss + settings.kl_reference_coefficient * reference
    return RegularizerOutput(loss, entropies.detach(), behaviour.detach(), reference.detach())
