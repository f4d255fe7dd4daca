"""CISPO and truncated importance sampling against numbers of public code, and their limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gipo_vla.objectives import CispoSettings, NoClipSettings

LOG_RATIO = [0.1, -0.3, 0.25, 0.9, 0.5, -0.4, -0.2, -1.2]
ADVANTAGES = torch.tensor([1.0] * 4 + [-2.0] * 4)
OF_PUBLIC_CODE = (
    (CispoSettings(), [1.1051710, 0.7408183, 1.2, 1.2, 1.2, 0.6703200, 0.8187308, 0.3011943]),
    (
        CispoSettings(clip_low=0.2, clip_high=0.28),
        [1.1051710, 0.8, 1.28, 1.28, 1.28, 0.8, 0.8187308, 0.8],
    ),
    (
        CispoSettings(truncation=2.0),
        [1.1051710, 0.7408183, 1.2840254, 2.0, 1.6487212, 0.6703200, 0.8187308, 0.3011943],
    ),
)
"""Minus the gradient over the advantage of verl's ``compute_policy_loss_cispo``, as
github.com/sail-sg/Stable-RL has it at commit c6af1d1, with clip_ratio_low and _high of (10, 0.2), which is
its example's, (0.2, 0.28) and (10, 1)."""


@pytest.mark.parametrize(("settings", "expected"), OF_PUBLIC_CODE)
def test_numbers_of_public_code(settings: CispoSettings, expected: list[float], evaluate: Any) -> None:
    behaviour = torch.tensor([-1.0, -2.0, -0.5, -3.0]).repeat(2)
    output, gradient = evaluate(settings, LOG_RATIO, ADVANTAGES, behaviour)
    torch.testing.assert_close(output.coefficient, torch.tensor(expected), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradient, -torch.tensor(expected) * ADVANTAGES, rtol=1e-6, atol=0.0)


def test_gradient_is_autograd_of_the_definition(evaluate: Any) -> None:
    log_ratio = torch.linspace(-3, 3, 60).requires_grad_()
    advantages = torch.tensor([1.5, -0.5]).repeat(30)
    weight = log_ratio.detach().exp().clamp(0.5, 1.6)
    (expected,) = torch.autograd.grad((-weight * advantages * log_ratio).sum(), log_ratio)
    _, gradient = evaluate(CispoSettings(clip_low=0.5, clip_high=0.6), log_ratio.detach(), advantages)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_no_gradient_is_ever_zero_nor_beyond_the_bound(advantage: float, evaluate: Any) -> None:
    log_ratio = torch.linspace(-60, 60, 121)
    for settings, bound in ((CispoSettings(), 1.2), (CispoSettings(truncation=3), 3.0)):
        output, gradient = evaluate(settings, log_ratio, advantage)
        assert (gradient != 0).all()
        assert output.coefficient.max().item() == pytest.approx(bound)
    floor, _ = evaluate(CispoSettings(clip_low=0.2), log_ratio, advantage)
    assert floor.coefficient.min().item() == pytest.approx(0.8), "abandoned tokens keep pulling"


def test_a_wide_truncation_is_importance_sampling(evaluate: Any) -> None:
    log_ratio = torch.linspace(-5, 5, 101)
    _, wide = evaluate(CispoSettings(truncation=1e6), log_ratio, 1.0)
    _, plain = evaluate(NoClipSettings(), log_ratio, 1.0)
    torch.testing.assert_close(wide, plain)
