"""The objective of the examples, by numbers."""

from __future__ import annotations

import math

import pytest
import torch

from gipo_envs.errors import UserError
from gipo_vla.objectives import objective_loss
from tests.examples.conftest import Example


def test_the_gradient_is_the_ratio_levelled_off(example: Example) -> None:
    settings = example("own_objective").SoftTruncationSettings(limit=2.0)
    behaviour = torch.tensor([-1.0, -1.0, -50.0]).reshape(3, 1, 1)
    log_probs = torch.tensor([-1.0, -3.0, -1.0]).reshape(3, 1, 1).requires_grad_()
    mask = torch.ones(3, 1, 1, dtype=torch.bool)
    output = objective_loss(log_probs, behaviour, torch.tensor([1.0, -2.0, 1.0]), mask, settings)
    output.loss.sum().backward()
    assert log_probs.grad is not None
    expected = [-2 * math.tanh(0.5), 2 * 2 * math.tanh(math.exp(-2.0) / 2), -2.0]
    torch.testing.assert_close(log_probs.grad.flatten(), torch.tensor(expected))
    torch.testing.assert_close(output.loss.detach().flatten(), torch.tensor(expected))


@pytest.mark.parametrize("limit", [0.0, -1.0, math.inf, math.nan])
def test_refuses_a_limit_that_makes_no_sense(example: Example, limit: float) -> None:
    with pytest.raises(UserError, match=r"objective\.limit"):
        example("own_objective").SoftTruncationSettings(limit=limit)
