"""PPO, SAPO and No-Clip against autograd of their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gipo_vla.objectives import NoClipSettings, PpoSettings, SapoSettings

GRID = torch.linspace(-3, 3, 60)  # no point on a clip boundary


def ppo_definition(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    ratio = log_ratio.exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def sapo_definition(log_ratio: Tensor, advantage: Tensor, tau_pos: float, tau_neg: float) -> Tensor:
    ratio = log_ratio.exp().clamp(1e-6, 1e6)
    tau = torch.where(advantage > 0, tau_pos, tau_neg).to(log_ratio.dtype)
    return -torch.sigmoid(tau * (ratio - 1)) * 4 / tau * advantage


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (0.5, 0.1)])
@pytest.mark.parametrize("advantage", [1.7, -0.6])
def test_ppo_is_autograd_of_its_definition(low: float, high: float, advantage: float, evaluate: Any) -> None:
    log_ratio = GRID.clone().requires_grad_()
    loss = ppo_definition(log_ratio, torch.full_like(GRID, advantage), low, high)
    (expected,) = torch.autograd.grad(loss.sum(), log_ratio)
    output, gradient = evaluate(PpoSettings(clip_low=low, clip_high=high), GRID, advantage)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(output.loss, loss.detach())
    assert torch.equal(output.coefficient == 0, expected == 0)


def test_ppo_by_hand(evaluate: Any) -> None:
    # A > 0 is clipped above 1.2, A < 0 below 0.8; on the way back there is a gradient.
    ratio = torch.tensor([0.5, 1.1, 1.5, 0.5, 0.9, 1.5])
    advantage = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0])
    output, gradient = evaluate(PpoSettings(), ratio.log(), advantage)
    torch.testing.assert_close(output.loss, torch.tensor([-1.0, -2.2, -2.4, 1.6, 1.8, 3.0]))
    torch.testing.assert_close(output.coefficient, torch.tensor([0.5, 1.1, 0.0, 0.0, 0.9, 1.5]))
    torch.testing.assert_close(gradient, torch.tensor([-1.0, -2.2, 0.0, 0.0, 1.8, 3.0]))


@settings(derandomize=True, deadline=None)
@given(
    log_ratio=st.floats(-13.8, 13.8),
    advantage=st.floats(0.01, 10),
    sign=st.sampled_from([1, -1]),
    tau_pos=st.floats(0.2, 5),
    tau_neg=st.floats(0.2, 5),
)
def test_sapo_is_autograd_of_its_definition(
    log_ratio: float, advantage: float, sign: int, tau_pos: float, tau_neg: float
) -> None:
    variable = torch.tensor([log_ratio], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([sign * advantage], dtype=torch.float64)
    # torch.where of two floats is float32: round the settings so that both sides see the same tau.
    tau_pos, tau_neg = torch.tensor([tau_pos, tau_neg]).tolist()
    loss = sapo_definition(variable, advantages, tau_pos, tau_neg)
    (expected,) = torch.autograd.grad(loss.sum(), variable)
    objective = SapoSettings(tau_pos=tau_pos, tau_neg=tau_neg)
    surrogate = objective.surrogate(variable.detach(), advantages)
    torch.testing.assert_close(surrogate.loss, loss.detach(), rtol=1e-9, atol=1e-12)
    gradient = -surrogate.coefficient * advantages
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


def test_sapo_by_hand(evaluate: Any) -> None:
    # rho = 2: s = sigmoid(1) = 0.731059 for A > 0 (tau 1), sigmoid(2) = 0.880797 for A < 0 (tau 2).
    output, _ = evaluate(SapoSettings(), [math.log(2)] * 2, torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(output.loss, torch.tensor([-4 * 0.731059, 2 * 0.880797]))
    expected = torch.tensor([4 * 2 * 0.731059 * 0.268941, 4 * 2 * 0.880797 * 0.119203])
    torch.testing.assert_close(output.coefficient, expected)


def test_sapo_has_no_gradient_outside_the_clamp(evaluate: Any) -> None:
    output, _ = evaluate(SapoSettings(), [-50.0, -13.9, -13.7], 1.0)
    assert output.coefficient[:2].tolist() == [0.0, 0.0]
    assert output.coefficient[2] > 0


def test_no_clip_is_the_ratio(evaluate: Any) -> None:
    output, gradient = evaluate(NoClipSettings(), GRID, -2.0)
    torch.testing.assert_close(output.loss, 2 * GRID.exp())
    torch.testing.assert_close(gradient, 2 * GRID.exp())
    extreme, _ = evaluate(NoClipSettings(), [50.0], 1.0)
    torch.testing.assert_close(extreme.coefficient.double(), torch.tensor([50.0]).double().exp())
