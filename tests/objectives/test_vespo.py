"""VESPO against numbers of its authors' code, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gipo_vla.objectives import VespoSettings, objective_loss

LOG_RATIO = torch.tensor([[0.1, -0.3, 0.2], [0.5, 0.4, -0.2], [-0.6, -0.5, 0.1], [1.5, 1.0, 0.8], [0.4,
-0.1, 0.3],
                          [-0.7, 0.2, -0.4]])  # fmt: skip
ADVANTAGES = torch.tensor([1.0, 2.0, 1.0, -1.0, -2.0, -0.5])
OF_THE_AUTHORS = [1.0, 0.1937362, 0.9015512, 0.0, 1.1685486, 0.2202176]
"""phi of each of six sequences of three tokens, computed by github.com/FloyedShen/VESPO at commit aa1f304:
``compute_policy_loss_vespo`` with its defaults. The fourth is 7.5e-20, which it prints as 0."""


def test_numbers_of_the_authors_code() -> None:
    log_probs = LOG_RATIO[:, None, :].clone().requires_grad_()
    mask = torch.ones(6, 1, 3, dtype=torch.bool)
    output = objective_loss(log_probs, torch.zeros(6, 1, 3), ADVANTAGES, mask, VespoSettings())
    (gradient,) = torch.autograd.grad(output.loss.sum(), log_probs)
    expected = torch.tensor(OF_THE_AUTHORS)[:, None, None].expand(6, 1, 3)
    torch.testing.assert_close(output.coefficient, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, -expected * ADVANTAGES[:, None, None], rtol=1e-6, atol=1e-7)


def test_by_hand(evaluate: Any) -> None:
    # W = 2: e^3 2^2 e^-6 where A >= 0, e^2 2^3 e^-4 elsewhere.
    output, _ = evaluate(VespoSettings(), [math.log(2)] * 3, torch.tensor([1.0, 0.0, -1.0]))
    pulls = 4 * math.exp(-3)
    torch.testing.assert_close(output.coefficient, torch.tensor([pulls, pulls, 8 * math.exp(-2)]))


def test_tokens_of_a_chunk_share_a_weight_and_masked_ones_have_none() -> None:
    """Two steps of two tokens, the second step not executed: W is the product over the first."""
    log_probs = torch.tensor([[[0.3, -0.1], [9.0, torch.nan]]])
    mask = torch.tensor([[[True, True], [False, False]]])
    output = objective_loss(log_probs, torch.zeros(1, 2, 2), torch.ones(1), mask, VespoSettings())
    expected = math.exp(3 + 2 * 0.2 - 3 * math.exp(0.2))
    assert output.coefficient[0, 0].tolist() == pytest.approx([expected, expected])
    assert output.coefficient[0, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("advantage", "peak"), [(1.0, 2 / 3), (-1.0, 3 / 2)])
def test_the_peak_and_both_ends(advantage: float, peak: float, evaluate: Any) -> None:
    grid = torch.linspace(-6, 4, 1001)
    output, _ = evaluate(VespoSettings(), grid, advantage)
    best = output.coefficient.argmax()
    assert grid[best].item() == pytest.approx(math.log(peak), abs=0.01)
    assert output.coefficient[0] < 1e-3 and output.coefficient[-1] < 1e-3
    assert output.coefficient.max() < 1.25, "bounded by e^lambda (k / (lambda e))^k"


def test_a_long_chunk_is_old_sooner() -> None:
    """The same token by token: 0.05 nats a token are nothing for one and too much for fifty-six."""
    for tokens, least, most in ((1, 0.9, 1.0), (56, 0.0, 1e-10)):
        log_probs, mask = torch.full((1, 1, tokens), 0.05), torch.ones(1, 1, tokens, dtype=torch.bool)
        output = objective_loss(log_probs, torch.zeros_like(log_probs), torch.ones(1), mask, VespoSettings())
        assert least <= output.coefficient[0, 0, 0].item() <= most
