"""What the tests of all objectives share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gipo_vla.objectives import ObjectiveOutput, objective_loss

Evaluate = Callable[..., tuple[ObjectiveOutput, Tensor]]


@pytest.fixture
def evaluate() -> Evaluate:
    """``evaluate(settings, log_ratio (T,), advantage (T,) or float)`` -> output and gradient of the summed
    loss with respect to the log-probs; every output (T,). The behaviour log-probs are 0, so that the
    log-ratios are exact in float32."""

    def run(settings: Any, log_ratio: Any, advantage: Any) -> tuple[ObjectiveOutput, Tensor]:
        log_ratio = torch.as_tensor(log_ratio, dtype=torch.float32)
        advantages = torch.as_tensor(advantage, dtype=torch.float32).expand(log_ratio.shape)
        log_probs = log_ratio[:, None, None].clone().requires_grad_()
        mask = torch.ones_like(log_probs, dtype=torch.bool)
        output = objective_loss(log_probs, torch.zeros_like(log_probs), advantages, mask, settings)
        (gradient,) = torch.autograd.grad(output.loss.sum(), log_probs)
        return ObjectiveOutput(*(tensor.flatten() for tensor in output)), gradient.flatten()

    return run
