"""M2PO against numbers of its authors' code, its statistic, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gipo_vla.objectives import M2poSettings, NoClipSettings, PpoSettings

LOG_RATIO = torch.tensor([[0.1, -0.3, 0.6, 0.9], [0.5, -0.4, -0.2, -1.2], [0.05, 0.02, 0.3, 1.4],
                          [-0.15, -0.7, 0.35, 0.0]])  # fmt: skip
ADVANTAGES = torch.tensor([1.0, -2.0, 1.5, -0.5])
"""Of four transitions with four tokens each. Harmful are those with |x| 0.1, 0.6, 0.9; 0.4, 0.2, 1.2; 0.05,
0.02, 0.3, 1.4; 0.15, 0.7."""
RATIO = LOG_RATIO.exp()


def unclipped(*left_out: tuple[int, int]) -> torch.Tensor:
    """The ratios, but 0 at these (transition, token)."""
    coefficient = RATIO.clone()
    for place in left_out:
        coefficient[place] = 0
    return coefficient


FAR = ((0, 3), (1, 3), (2, 3))  # |x| of 0.9, 1.2 and 1.4
OF_THE_AUTHORS = (
    (0.04, 0.3, 0.5, 0.2, unclipped((0, 2), (1, 1), (3, 1), *FAR), -2.5031943),
    (0.04, 0.0, 0.0, 0.2, unclipped((0, 2), (2, 2), (1, 1), (3, 1), *FAR), -0.8011308),
    (0.2, 0.0, 0.0, 0.6, unclipped((3, 1), *FAR), -4.0679419),
    (0.3, 0.3, 0.5, 0.7, unclipped(*FAR), -4.6775916),
    (1.0, 0.3, 0.5, math.inf, RATIO, -8.5763950),
)
"""budget, least_low and least_high; tau, coefficients, summed loss. Computed by
github.com/Infini-AI-Lab/M2PO at commit af54a3e: ``compute_m2po_policy_loss`` with log-probs of the
behaviour policy -1, -2, -0.5, -3; the second line with miniclip None, as its scripts run."""


def statistics(settings: M2poSettings, log_ratio: Any, advantages: Any, mask: Any = None) -> torch.Tensor:
    log_ratio = torch.as_tensor(log_ratio)
    mask = torch.ones_like(log_ratio, dtype=torch.bool) if mask is None else mask
    advantages = torch.as_tensor(advantages, dtype=torch.float32).expand(log_ratio.shape)
    return settings.batch_statistics(log_ratio.flatten(), advantages.flatten(), mask.flatten())


@pytest.mark.parametrize(("budget", "low", "high", "tau", "coefficient", "loss"), OF_THE_AUTHORS)
def test_numbers_of_the_authors_code(
    budget: float, low: float, high: float, tau: float, coefficient: Any, loss: float, evaluate: Any
) -> None:
    settings = M2poSettings(budget=budget, least_low=low, least_high=high)
    own = ADVANTAGES.repeat_interleave(4)
    found = statistics(settings, LOG_RATIO, own.view(4, 4))
    assert found[0].item() == pytest.approx(tau)
    assert found[1].item() == pytest.approx(0.4487833)
    output, _ = evaluate(settings, LOG_RATIO.flatten(), own, statistics=found)
    torch.testing.assert_close(output.coefficient, coefficient.flatten(), rtol=1e-5, atol=0.0)
    assert output.loss.sum().item() == pytest.approx(loss, rel=1e-5)


def test_tau_by_hand() -> None:
    """Squares 0.01, 0.04, 0.25: capped at 0.04 they sum to 0.09, at 0.01 to 0.03."""
    for budget, tau in ((0.031, 0.2), (0.029, 0.1), (0.009, 0.0), (0.0999, 0.2), (0.1001, math.inf)):
        found = statistics(M2poSettings(budget=budget), [0.1, 0.2, 0.5], 1.0)
        assert found.tolist() == pytest.approx([tau, 0.1]), budget


def test_only_valid_harmful_tokens_count() -> None:
    settings = M2poSettings(budget=0.04)
    mask = torch.tensor([True, True, True, True, False])
    # Left out: an advantage of 0, one that comes back towards the data, and a masked one.
    log_ratio, advantages = [0.1, -3.0, 2.0, 0.3, 5.0], [1.0, 1.0, 0.0, 1.0, 1.0]
    found = statistics(settings, log_ratio, advantages, mask)
    assert found.tolist() == pytest.approx([0.1, 0.05])
    nothing = statistics(settings, [0.0, -1.0], 1.0)
    assert nothing.tolist() == [math.inf, 0.0]


def test_without_a_box_it_is_importance_sampling_and_metrics_say_so(evaluate: Any) -> None:
    log_ratio = torch.linspace(-0.15, 0.15, 31)
    output, gradient = evaluate(M2poSettings(), log_ratio, 1.0)
    plain, expected = evaluate(NoClipSettings(), log_ratio, 1.0)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(output.loss, plain.loss)
    free = M2poSettings().statistics_metrics([math.inf, 0.01])
    assert free == {"objective/second_moment": 0.01, "objective/boxed": 0.0}
    assert M2poSettings().statistics_metrics([0.4, 0.3])["objective/tau"] == 0.4


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_old_data_are_clipped_as_by_ppo_with_the_least_box(advantage: float, evaluate: Any) -> None:
    """All harmful tokens are far away: tau is 0, and the smallest box is left."""
    log_ratio = torch.linspace(-9, 9, 60)
    output, _ = evaluate(M2poSettings(), log_ratio, advantage)
    ppo, _ = evaluate(PpoSettings(clip_low=0.3, clip_high=0.5), log_ratio, advantage)
    torch.testing.assert_close(output.coefficient, ppo.coefficient)
    torch.testing.assert_close(output.loss, ppo.loss)


def test_what_it_needs_is_named(evaluate: Any) -> None:
    with pytest.raises(ValueError, match="m2po needs statistics"):
        evaluate(M2poSettings(), [0.0], 1.0, statistics=None)
