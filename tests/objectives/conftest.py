"""What the tests of all objectives share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_vla.objectives import ObjectiveOutput, objective_loss
from gipo_vla.objectives.base import BatchObjective

Evaluate = Callable[..., tuple[ObjectiveOutput, Tensor]]
Context = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def context() -> Context:
    """``context(settings, log_ratio, advantages, mask)``: what ``objective_loss`` wants besides, for tokens
    (N, K, D) that are a whole update, three updates old."""

    def make(settings: Any, log_ratio: Tensor, advantages: Tensor, mask: Tensor) -> dict[str, Any]:
        statistics = None
        if isinstance(settings, BatchObjective):
            own = (advantages[:, None, None] if advantages.dim() == 1 else advantages).expand(mask.shape)
            statistics = settings.batch_statistics(
                *(torch.where(mask, part, 0.0).flatten() for part in (log_ratio, own)), mask.flatten()
            )
        return {"lag": torch.full((len(mask),), 3.0), "statistics": statistics}

    return make


@pytest.fixture(scope="session")
def evaluate(context: Context) -> Evaluate:
    """``evaluate(settings, log_ratio (T,), advantage (T,) or float, behaviour=0, ...)`` -> output and
    gradient of the summed loss with respect to the log-probs; every output (T,). With behaviour log-probs
    of 0 the log-ratios are exact in float32. What else ``objective_loss`` takes may be given by name."""

    def run(
        settings: Any, log_ratio: Any, advantage: Any, behaviour: Any = 0.0, **given: Any
    ) -> tuple[ObjectiveOutput, Tensor]:
        log_ratio = torch.as_tensor(log_ratio, dtype=torch.float32)
        advantages = torch.as_tensor(advantage, dtype=torch.float32).expand(log_ratio.shape)
        behaviour = torch.as_tensor(behaviour, dtype=torch.float32).expand(log_ratio.shape)[:, None, None]
        log_probs = (log_ratio[:, None, None] + behaviour).requires_grad_()
        mask = torch.ones_like(log_probs, dtype=torch.bool)
        own = context(settings, log_ratio[:, None, None], advantages, mask) | given
        output = objective_loss(log_probs, behaviour, advantages, mask, settings, **own)
        (gradient,) = torch.autograd.grad(output.loss.sum(), log_probs)
        return ObjectiveOutput(*(tensor.flatten() for tensor in output)), gradient.flatten()

    return run
