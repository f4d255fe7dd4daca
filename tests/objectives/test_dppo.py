"""DPPO with total variation against numbers of its authors' code, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gipo_vla.objectives import CispoSettings, DppoSettings, PpoSettings

BEHAVIOUR = torch.tensor([0.5, 0.5, 1e-4, 0.02, 0.9, 0.3])
LEARNER = torch.tensor([0.6, 0.7, 5e-3, 0.165, 0.7, 0.14])
OF_THE_AUTHORS = {
    1.0: [1.2, 0.0, 20.0, 8.25, 0.7777778, 0.4666667],
    -2.0: [1.2, 1.4, 20.0, 8.25, 0.0, 0.0],
}
"""Minus the gradient over the advantage of github.com/sail-sg/Stable-RL at commit c6af1d1,
``compute_policy_loss_with_mask`` with loss_mode dppo_binary_tv, clip_ratio 0.15 and clip_ratio_c 20."""


@pytest.mark.parametrize("advantage", list(OF_THE_AUTHORS))
def test_numbers_of_the_authors_code(advantage: float, evaluate: Any) -> None:
    log_ratio = LEARNER.log() - BEHAVIOUR.log()
    output, gradient = evaluate(DppoSettings(), log_ratio, advantage, BEHAVIOUR.log())
    expected = torch.tensor(OF_THE_AUTHORS[advantage])
    torch.testing.assert_close(output.coefficient, expected, rtol=2e-6, atol=0.0)
    torch.testing.assert_close(gradient, -advantage * expected, rtol=2e-6, atol=0.0)


def test_a_rare_token_is_not_left_out_for_its_ratio(evaluate: Any) -> None:
    """From 1e-5 to 1e-3: PPO clips at a ratio of 100, though nothing has moved; at 0.99 to 0.8 it does
    not."""
    rare, likely = math.log(100.0), math.log(0.8 / 0.99)
    for log_ratio, behaviour, advantage, of_ppo, here in (
        (rare, math.log(1e-5), 1.0, 0.0, 20.0),
        (likely, math.log(0.99), -1.0, 0.8 / 0.99, 0.0),
    ):
        ppo, _ = evaluate(PpoSettings(), [log_ratio], advantage, behaviour)
        dppo, _ = evaluate(DppoSettings(), [log_ratio], advantage, behaviour)
        assert ppo.coefficient.item() == pytest.approx(of_ppo)
        assert dppo.coefficient.item() == pytest.approx(here, rel=1e-5)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_side_that_the_advantage_does_not_push_to_is_free(advantage: float, evaluate: Any) -> None:
    probabilities = torch.linspace(0.005, 0.995, 100)
    output, _ = evaluate(DppoSettings(), probabilities.log() - math.log(0.5), advantage, math.log(0.5))
    moved = probabilities - 0.5
    out = moved > 0.15 if advantage > 0 else moved < -0.15
    assert (output.coefficient[out] == 0).all() and out.sum() == 35
    torch.testing.assert_close(output.coefficient[~out], probabilities[~out] / 0.5)


def test_among_many_bins_it_is_truncated_importance_sampling(evaluate: Any) -> None:
    """A nearly uniform policy over 256 bins: a probability of 1/256 cannot move by 0.15 below a ratio of
    39."""
    log_ratio = torch.linspace(-4, 3.6, 77)
    output, _ = evaluate(DppoSettings(), log_ratio, 1.0, -math.log(256))
    tis, _ = evaluate(CispoSettings(truncation=20), log_ratio, 1.0)
    torch.testing.assert_close(output.coefficient, tis.coefficient)
    far, _ = evaluate(DppoSettings(), [4.0], 1.0, -math.log(256))
    assert far.coefficient.item() == 0
