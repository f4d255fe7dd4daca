"""The contract of objectives, and the one place where gradients are attached.

Every objective here is a function of the log-ratio and the advantage of action tokens. From them it says
what the loss is worth and how strongly the token pulls: its *coefficient*, the factor c in

    gradient of the loss = -c * A * grad log pi(token).

No-Clip has c = rho, GIPO c = w(rho) rho, PPO c = rho or 0, SAPO c = rho gate'(rho). Writing all of them
this way (instead of differentiating through ``exp``) keeps every objective finite in float32 whatever the
staleness, makes "detached" a property of the code's shape rather than of a remembered ``.detach()``, and
gives the diagnostics of staleness one quantity that means the same thing for all objectives.

Most objectives need no more, and write ``surrogate(log_ratio, advantages)``. Those that need more say so by
what they have:

    surrogate_of(tokens)     instead: sees the behaviour policy's log-probs, lags, and what it asked for
                             below (``TokenObjective``)
    needs_proximal           log-probs of the policy that acts now (``TokenObjective``)
    batch_statistics(...)    numbers of the whole update, over its micro-batches and ranks, known before
                             its first backward pass (``BatchObjective``)
    adaptive()               settings that follow the data of past updates (``AdaptiveObjective``)

Reducing the per-token loss (sum over valid tokens / global count of valid tokens) is the learner's.

Shape suffixes: N transitions, K steps of a chunk, D action dimensions (tokens a step).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from gipo_vla.settings.registry import objectives

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
    """Settings of an objective: a frozen dataclass, known by the default of its field ``name``."""

    @property
    def name(self) -> str: ...

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """The objective itself: pure, dtype-preserving, and not to be differentiated through.

        Args:
            log_ratio: log rho (N, K, D), finite; zero at masked tokens.
            advantages: broadcasts against it. Tokens of one transition (K, D) share it.
        """
        ...


class Tokens(NamedTuple):
    """All that an objective may look at: (N, K, D), float32, without gradient and zero where masked."""

    log_ratio: Tensor
    """log pi - log mu."""
    advantages: Tensor
    behaviour_log_probs: Tensor
    """log mu; its exponential is the probability with which the token was drawn."""
    lag: Tensor | None
    """(N, 1, 1), updates made since the policy that acted had been copied from the learner."""
    proximal_log_ratio: Tensor | None
    """log p - log mu of the proximal policy p, for an objective that needs it."""
    statistics: Tensor | None
    """What ``batch_statistics`` returned for this update."""


@runtime_checkable
class TokenObjective(Protocol):
    """Settings of an objective that looks at more than log-ratios and advantages."""

    @property
    def name(self) -> str: ...

    @property
    def needs_proximal(self) -> bool:
        """Whether ``surrogate_of`` wants the log-probs of the policy that acts now: one more forward."""
        ...

    def surrogate_of(self, tokens: Tokens) -> Surrogate:
        """As ``ObjectiveSettings.surrogate``.

        Raises:
            ValueError: ``objective_loss`` was not given something that this objective needs.
        """
        ...


@runtime_checkable
class BatchObjective(Protocol):
    """Settings of an objective whose tokens depend on each other through numbers of the whole update.

    The learner computes them before the first backward pass, from a forward without gradient over all its
    micro-batches, and gathers tokens over ranks: so a cut into micro-batches or ranks changes no gradient.
    That forward is what they cost.
    """

    def batch_statistics(self, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
        """Statistics (S,) of all tokens (T,) of one update; computed on their device, for which the host must
        not wait."""
        ...

    def statistics_metrics(self, statistics: Sequence[float]) -> dict[str, float]:
        """Metrics of them; a name that says nothing about this update is left out."""
        ...


class AdaptiveObjective(Protocol):
    """What the learner keeps between updates for an objective that follows the data; equal on all ranks."""

    @property
    def settings(self) -> ObjectiveSettings:
        """The objective of the next update."""
        ...

    def observe(self, packed: Tensor) -> None:
        """Learn from an update: its tokens over all ranks, (T, 5) as ``StalenessDiagnostics.packed`` has
        them, on the CPU."""
        ...

    def metrics(self) -> dict[str, float]:
        """What is in force, for the metrics of an update."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values, exact through JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back ``state_dict``."""
        ...


def adaptive_of(settings: Any) -> AdaptiveObjective | None:
    """What follows the data for these settings; None for an objective that stays as it is."""
    make = getattr(settings, "adaptive", None)
    adaptive: AdaptiveObjective | None = make() if make is not None else None
    return adaptive


def needs_proximal(settings: Any) -> bool:
    """Whether an objective wants the log-probs of the policy that acts now."""
    return isinstance(settings, TokenObjective) and settings.needs_proximal


register = objectives.register
"""Decorator of the settings class of an objective."""


def objective_loss(
    log_probs: Tensor,
    behaviour_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    settings: ObjectiveSettings | TokenObjective,
    *,
    lag: Tensor | None = None,
    proximal_log_probs: Tensor | None = None,
    statistics: Tensor | None = None,
) -> ObjectiveOutput:
    """Per-token loss of the objective that ``settings`` belongs to.

    Args:
        log_probs: (N, K, D) of the taken tokens under the learner policy; differentiable.
        behaviour_log_probs: (N, K, D) of the same tokens under the policy that sampled them, at the
            same temperature.
        advantages: (N,) or broadcastable to (N, K, D). One a transition: every token of a chunk shares it.
        mask: bool (N, K, D), true at valid tokens. What stands at other tokens is never looked at, NaN
            included.
        lag: (N,) updates made since each transition's policy was copied from the learner; for objectives that
            ask for it, as are the next two.
        proximal_log_probs: (N, K, D) of the taken tokens under the proximal policy.
        statistics: of the whole update, by ``BatchObjective.batch_statistics``.
    """
    log_ratio = torch.where(mask, log_probs.detach().float() - behaviour_log_probs.detach().float(), 0.0)
    advantages = advantages.detach().float()
    if advantages.dim() == 1:
        advantages = advantages[:, None, None]
    advantages = torch.where(mask, advantages, 0.0)
    if isinstance(settings, TokenObjective):
        behaviour = torch.where(mask, behaviour_log_probs.detach().float(), 0.0)
        proximal = None
        if proximal_log_probs is not None:
            proximal = torch.where(mask, proximal_log_probs.detach().float() - behaviour, 0.0)
        lags = None if lag is None else lag.float()[:, None, None]
        surrogate = settings.surrogate_of(
            Tokens(log_ratio, advantages, behaviour, lags, proximal, statistics)
        )
    else:
        surrogate = settings.surrogate(log_ratio, advantages)

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


def required(value: Tensor | None, objective: str, what: str) -> Tensor:
    """What ``objective_loss`` was given.

    Raises:
        ValueError: it was not.
    """
    if value is None:
        raise ValueError(f"the objective {objective} needs {what}: give it to objective_loss")
    return value
