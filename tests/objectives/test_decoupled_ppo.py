"""Decoupled PPO against numbers of its authors' code, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gipo_vla.objectives import CispoSettings, DecoupledPpoSettings, PpoSettings

LOG_RATIO = [0.1, -0.5, 0.9, 1.6, 2.4, -2.0, 0.15, -0.3]
LAG = torch.tensor([0.0, 1.0, 2.0, 4.0, 20.0, 10.0, 1.0, 1.0])
OF_THE_AUTHORS = {
    ("drop", 1.0): [1.1051708, 0.6065307, 0, 0, 0, 0.1353353, 1.1618344, 0.7408183],
    ("drop", -1.0): [1.1051708, 0, 2.4596035, 4.9530325, 0, 0.1353353, 1.1618344, 0],
    ("truncate", 1.0): [1.1051708, 0.6065307, 0, 0, 5.6374846, 0.1353353, 1.1618344, 0.7408183],
    ("truncate", -1.0): [1.1051708, 0, 2.4596035, 4.9530325, 5.6374846, 0.1353353, 1.1618344, 0],
}
"""Computed by github.com/inclusionAI/AReaL at commit 4aef98d: ``compute_prox_logp_approximations``
(loglinear) and ``ppo_actor_loss_fn`` with eps_clip 0.2 and rejection_sampling (token, ratio, upper 5; mask
or clamp): minus the gradient over the advantage."""


@pytest.mark.parametrize(("beyond", "advantage"), list(OF_THE_AUTHORS))
def test_numbers_of_the_authors_code(beyond: Any, advantage: float, evaluate: Any) -> None:
    settings = DecoupledPpoSettings(beyond_cap=beyond)
    output, gradient = evaluate(settings, LOG_RATIO, advantage, behaviour=-3.0, lag=LAG)
    expected = torch.tensor(OF_THE_AUTHORS[beyond, advantage])
    torch.testing.assert_close(output.coefficient, expected, rtol=3e-6, atol=0.0)
    torch.testing.assert_close(gradient, -advantage * expected, rtol=3e-6, atol=0.0)


def test_the_interpolated_policy_by_hand(evaluate: Any) -> None:
    """The authors' own test: versions 0 and 2 of a learner at version 4, log p = -1.375 and -2.1."""
    output, _ = evaluate(
        DecoupledPpoSettings(clip_high=1e-3, behaviour_cap=None, clip_low=1e-3),
        torch.tensor([-0.5, -0.2]),
        -1.0,
        lag=torch.tensor([4.0, 2.0]),
    )
    # Both have left the box: the loss is (p / mu) (1 - 1e-3) with p / mu = exp(-0.375) and exp(-0.1).
    expected = 0.999 * torch.tensor([-0.375, -0.1]).exp()
    torch.testing.assert_close(output.loss, expected)
    assert output.coefficient.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("advantage", [1.7, -0.6])
def test_a_given_proximal_policy_is_autograd_of_the_definition(advantage: float, evaluate: Any) -> None:
    log_ratio = torch.linspace(-2, 2, 40).requires_grad_()
    proximal = 0.3 * torch.linspace(-2, 2, 40) + 0.1
    ratio = (log_ratio - proximal).exp()
    clipped = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    loss = -proximal.exp().clamp(max=1.5) * clipped
    (expected,) = torch.autograd.grad(loss.sum(), log_ratio)
    settings = DecoupledPpoSettings(proximal="synchronized", behaviour_cap=1.5, beyond_cap="truncate")
    output, gradient = evaluate(
        settings, log_ratio.detach(), advantage, proximal_log_probs=proximal[:, None, None]
    )
    torch.testing.assert_close(output.loss, loss.detach())
    torch.testing.assert_close(gradient, expected)
    assert torch.equal(gradient == 0, expected == 0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_between_ppo_and_truncated_importance_sampling(advantage: float, evaluate: Any) -> None:
    """With the proximal policy at mu it is PPO; with that at pi, importance sampling without a box."""
    log_ratio = torch.linspace(-3, 3, 60)
    one_update, _ = evaluate(DecoupledPpoSettings(), log_ratio, advantage, lag=torch.ones(60))
    ppo, _ = evaluate(PpoSettings(), log_ratio, advantage)
    torch.testing.assert_close(one_update.coefficient, ppo.coefficient)
    torch.testing.assert_close(one_update.loss, ppo.loss)
    truncated = DecoupledPpoSettings(beyond_cap="truncate")
    ancient, _ = evaluate(truncated, log_ratio, advantage, lag=torch.full((60,), 1e6))
    tis, _ = evaluate(CispoSettings(truncation=5), log_ratio, advantage)
    torch.testing.assert_close(ancient.coefficient, tis.coefficient, rtol=1e-4, atol=0.0)


def test_the_box_moves_with_the_policy(evaluate: Any) -> None:
    """A token that is 1 nat away after 20 updates moved 0.05 in the last one: PPO is dead, this is not."""
    ppo, _ = evaluate(PpoSettings(), [1.0], 1.0)
    here, _ = evaluate(DecoupledPpoSettings(), [1.0], 1.0, lag=torch.tensor([20.0]))
    assert ppo.coefficient.item() == 0
    assert here.coefficient.item() == pytest.approx(math.e)


def test_what_it_needs_is_named(evaluate: Any) -> None:
    with pytest.raises(ValueError, match="decoupled_ppo needs lag: give it to objective_loss"):
        evaluate(DecoupledPpoSettings(), [0.0], 1.0, lag=None)
    with pytest.raises(ValueError, match="decoupled_ppo needs proximal_log_probs"):
        evaluate(DecoupledPpoSettings(proximal="synchronized"), [0.0], 1.0)
