"""KL estimators against exact expectations; entropy bonus; masks; numerics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gipo_envs.errors import UserError
from gipo_vla.objectives import RegularizerSettings, regularizer_loss
from gipo_vla.objectives.regularizers import K3_LINEAR_FROM, exact_kl, k3


def two_policies(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (7,) of the behaviour and of the learner policy; the second differentiable."""
    generator = torch.Generator().manual_seed(3)
    behaviour, learner = torch.randn(2, 7, generator=generator, dtype=dtype)
    return behaviour, learner.requires_grad_()


def reference_kl(logits_from: Tensor, logits_to: Tensor) -> Tensor:
    p, q = logits_from.softmax(-1), logits_to.softmax(-1)
    return (p * (p / q).log()).sum(-1)


def test_k3_is_unbiased_for_old_to_new_and_so_is_its_gradient() -> None:
    behaviour, learner = two_policies()
    log_ratio = learner.log_softmax(-1) - behaviour.log_softmax(-1)
    assert log_ratio.max() < K3_LINEAR_FROM
    expectation = (behaviour.softmax(-1) * k3(log_ratio)).sum()  # over all tokens, weighted by mu
    exact = reference_kl(behaviour, learner)
    other_direction = reference_kl(learner, behaviour)
    torch.testing.assert_close(expectation, exact)
    assert abs(exact - other_direction) > 0.05  # the test can tell the directions apart
    (gradient,) = torch.autograd.grad(expectation, learner, retain_graph=True)
    (expected,) = torch.autograd.grad(exact, learner)
    torch.testing.assert_close(gradient, expected)


def test_k3_values_and_tangent() -> None:
    x = torch.tensor([-80.0, -1.0, 0.0, 1.0, 5.0, 6.0, 1e4], requires_grad=True)
    value = k3(x)
    slope = math.exp(5)
    expected = [79.0, math.exp(-1), 0.0, math.e - 2, slope - 6, 2 * slope - 7, slope * 9996 - 10001]
    torch.testing.assert_close(value, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    expected = [-1.0, math.exp(-1) - 1, 0.0, math.e - 1, slope - 1, slope - 1, slope - 1]
    torch.testing.assert_close(gradient, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_k3_is_accurate_near_zero() -> None:
    x = torch.tensor([1e-3, -1e-3, 1e-4])
    torch.testing.assert_close(k3(x), x**2 / 2, rtol=2e-3, atol=0.0)


def test_exact_kl_by_hand_and_from_float16() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 log(3/2) + 1/4 log(1/2) = 0.130812
    p, q = torch.tensor([math.log(3.0), 0.0]), torch.tensor([0.0, 0.0])
    assert exact_kl(p, q).item() == pytest.approx(0.130812, abs=1e-6)
    behaviour, learner = two_policies()
    single = exact_kl(behaviour, learner)
    torch.testing.assert_close(single, reference_kl(behaviour, learner).float(), rtol=1e-5, atol=1e-6)
    half = exact_kl(behaviour.half(), learner)
    torch.testing.assert_close(half.double(), reference_kl(behaviour, learner), rtol=1e-2, atol=1e-4)
    assert exact_kl(behaviour, behaviour).item() == pytest.approx(0, abs=1e-6)


def test_exact_kl_allows_impossible_tokens() -> None:
    learner = torch.zeros(3, requires_grad=True)
    value = exact_kl(torch.tensor([0.0, 0.0, -torch.inf]), learner)
    assert value.item() == pytest.approx(math.log(3 / 2))
    (gradient,) = torch.autograd.grad(value, learner)
    torch.testing.assert_close(gradient, torch.tensor([1 / 3 - 1 / 2, 1 / 3 - 1 / 2, 1 / 3]))


def test_sum_of_all_regularizers() -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs = -torch.rand(2, 3, 2, generator=generator)
    behaviour = -torch.rand(2, 3, 2, generator=generator)
    reference = -torch.rand(2, 3, 2, generator=generator)
    entropies = torch.rand(2, 3, 2, generator=generator)
    mask = torch.rand(2, 3, 2, generator=generator) < 0.7
    weights = RegularizerSettings(
        entropy_coefficient=0.1, kl_behaviour_coefficient=0.2, kl_reference_coefficient=0.3
    )
    output = regularizer_loss(log_probs, entropies, behaviour, mask, weights, reference_log_probs=reference)
    x, y = log_probs - behaviour, reference - log_probs
    expected = -0.1 * entropies + 0.2 * (x.exp() - 1 - x) + 0.3 * (y.exp() - 1 - y)
    torch.testing.assert_close(output.loss, torch.where(mask, expected, 0.0))
    torch.testing.assert_close(output.entropy, torch.where(mask, entropies, 0.0))
    torch.testing.assert_close(output.kl_behaviour, torch.where(mask, x.exp() - 1 - x, 0.0))
    torch.testing.assert_close(output.kl_reference, torch.where(mask, y.exp() - 1 - y, 0.0))


def test_exact_kls_take_the_directions_old_to_new_and_new_to_reference() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, behaviour_logits, reference_logits = torch.randn(3, 1, 1, 2, 5, generator=generator)
    tokens = torch.zeros(1, 1, 2)
    output = regularizer_loss(
        tokens,
        tokens,
        tokens,
        torch.ones(1, 1, 2, dtype=torch.bool),
        RegularizerSettings(
            kl_behaviour="exact",
            kl_behaviour_coefficient=1.0,
            kl_reference="exact",
            kl_reference_coefficient=1.0,
        ),
        logits=logits,
        behaviour_logits=behaviour_logits,
        reference_logits=reference_logits,
    )
    torch.testing.assert_close(output.kl_behaviour, reference_kl(behaviour_logits, logits))
    torch.testing.assert_close(output.kl_reference, reference_kl(logits, reference_logits))


def test_masked_tokens_reach_neither_value_nor_gradient() -> None:
    mask = torch.tensor([[[True, False]]])
    log_probs = torch.tensor([[[-1.0, torch.nan]]], requires_grad=True)
    entropies = torch.tensor([[[1.0, torch.nan]]], requires_grad=True)
    logits = torch.tensor([[[[0.0, 1.0], [torch.nan, torch.inf]]]], requires_grad=True)
    output = regularizer_loss(
        log_probs,
        entropies,
        torch.tensor([[[-2.0, torch.inf]]]),
        mask,
        RegularizerSettings(
            entropy_coefficient=1.0,
            kl_behaviour="exact",
            kl_behaviour_coefficient=1.0,
            kl_reference_coefficient=1.0,
        ),
        logits=logits,
        behaviour_logits=torch.zeros(1, 1, 2, 2).half(),
        reference_log_probs=torch.tensor([[[-1.5, torch.nan]]]),
    )
    output.loss.sum().backward()
    for variable in (log_probs, entropies, logits):
        assert variable.grad is not None
        assert variable.grad.isfinite().all()
        assert (variable.grad[0, 0, 0] != 0).any()
        assert (variable.grad[0, 0, 1] == 0).all()
    for tensor in output:
        assert (tensor[~mask] == 0).all()


def test_kl_pulls_back_from_any_distance() -> None:
    log_probs = torch.tensor([[[-80.0, 80.0]]], requires_grad=True)
    output = regularizer_loss(
        log_probs,
        torch.zeros(1, 1, 2),
        torch.zeros(1, 1, 2),
        torch.ones(1, 1, 2, dtype=torch.bool),
        RegularizerSettings(kl_behaviour_coefficient=1.0),
    )
    (gradient,) = torch.autograd.grad(output.loss.sum(), log_probs)
    assert gradient[0, 0, 0] == -1.0
    assert gradient[0, 0, 1] == pytest.approx(math.exp(5) - 1)


def test_missing_inputs_are_explained() -> None:
    tokens, mask = torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
    with pytest.raises(UserError, match="kl_behaviour is exact, but the policy gives no logits"):
        regularizer_loss(tokens, tokens, tokens, mask, RegularizerSettings(kl_behaviour="exact"))
    weights = RegularizerSettings(kl_reference="exact", kl_reference_coefficient=1.0)
    with pytest.raises(UserError, match="kl_reference is exact, but the policy gives no logits"):
        regularizer_loss(tokens, tokens, tokens, mask, weights)
    weights = RegularizerSettings(kl_reference_coefficient=1.0)
    with pytest.raises(ValueError, match="needs the reference policy's log-probs"):
        regularizer_loss(tokens, tokens, tokens, mask, weights)
