"""GIPO's identities, as its paper states them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_vla.objectives import GipoSettings, NoClipSettings, PpoSettings
from gipo_vla.objectives.kernels import KERNELS

KERNEL_NAMES = sorted(KERNELS)
HALF_AT = math.sqrt(2 * math.log(2))  # 1.1774


def weight(kernel: str, log_ratio: float, sigma: float) -> float:
    """w in float64."""
    x, s = torch.tensor([log_ratio, sigma], dtype=torch.float64)
    return KERNELS[kernel](x, s).exp().item()


@settings(derandomize=True, deadline=None)
@given(
    kernel=st.sampled_from(KERNEL_NAMES),
    log_ratio=st.floats(-80, 80),
    sigma=st.floats(0.05, 5),
)
def test_kernels_are_even_peaked_and_within_one(kernel: str, log_ratio: float, sigma: float) -> None:
    value = weight(kernel, log_ratio, sigma)
    assert value == weight(kernel, -log_ratio, sigma)  # w(rho) = w(1 / rho)
    assert 0 <= value <= 1
    assert weight(kernel, 0.0, sigma) == 1
    assert weight(kernel, 1.5 * log_ratio, sigma) <= value


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0, 2.0])
def test_kernel_values_by_hand(sigma: float) -> None:
    assert pytest.approx(1.177, abs=5e-4) == HALF_AT
    for sign in (1, -1):
        assert weight("gaussian", sign * HALF_AT * sigma, sigma) == pytest.approx(0.5)
        assert weight("laplacian", sign * math.log(2) * sigma, sigma) == pytest.approx(0.5)
        assert weight("cauchy", sign * sigma, sigma) == pytest.approx(0.5)
    assert weight("gaussian", 2 * sigma, sigma) == pytest.approx(math.exp(-2))
    assert weight("laplacian", 2 * sigma, sigma) == pytest.approx(math.exp(-2))
    assert weight("cauchy", 2 * sigma, sigma) == pytest.approx(1 / 5)


@pytest.mark.parametrize(("sigma", "bound"), [(0.2, 1.020), (0.5, 1.133), (1.0, 1.649), (2.0, 7.389)])
def test_gaussian_bound_of_the_coefficient(sigma: float, bound: float, evaluate: Any) -> None:
    grid = torch.linspace(-10, 10, 20_001)  # a step of 0.001
    output, _ = evaluate(GipoSettings(sigma=sigma), grid, 1.0)
    largest = output.coefficient.max().item()
    assert largest == pytest.approx(bound, abs=5e-4)
    assert largest == pytest.approx(math.exp(sigma**2 / 2), rel=1e-5)
    at = grid[output.coefficient.argmax()].item()
    assert at == pytest.approx(sigma**2, abs=0.01)  # flat there, in float32


@settings(derandomize=True, deadline=None)
@given(log_ratio=st.floats(-80, 80), advantage=st.floats(-10, 10), sigma=st.floats(0.05, 3))
def test_each_term_is_bounded(log_ratio: float, advantage: float, sigma: float) -> None:
    surrogate = GipoSettings(sigma=sigma, sigma_neg_ratio=1.0).surrogate(
        torch.tensor([log_ratio], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64)
    )
    assert surrogate.loss.abs().item() <= math.exp(sigma**2 / 2) * abs(advantage) * (1 + 1e-12)


def test_infinite_sigma_is_no_clip(evaluate: Any) -> None:
    log_ratio = torch.linspace(-5, 5, 101)
    for advantage in (1.0, -1.0):
        ours, gradient = evaluate(GipoSettings(sigma=1e5), log_ratio, advantage)
        reference, reference_gradient = evaluate(NoClipSettings(), log_ratio, advantage)
        torch.testing.assert_close(gradient, reference_gradient, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.loss, reference.loss, rtol=1e-6, atol=1e-6)
    # And a finite sigma is not.
    _, damped = evaluate(GipoSettings(sigma=1.0), log_ratio, 1.0)
    assert not torch.allclose(damped, -log_ratio.exp(), rtol=1e-2)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
def test_no_gradient_flows_through_the_weight(kernel: Any, evaluate: Any) -> None:
    log_ratio = torch.tensor([-1.3, -0.4, 0.2, 0.9, 1.7], requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5, -1.0, 3.0])
    sigma = torch.where(advantage > 0, 0.8, 0.4)
    w = KERNELS[kernel](log_ratio, sigma).exp()

    def gradient_of(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss.sum(), log_ratio, retain_graph=True)[0]

    detached = gradient_of(-w.detach() * log_ratio.exp() * advantage)
    through = gradient_of(-w * log_ratio.exp() * advantage)
    objective = GipoSettings(sigma=0.8, sigma_neg_ratio=0.5, kernel=kernel)
    output, gradient = evaluate(objective, log_ratio.detach(), advantage)
    torch.testing.assert_close(gradient, detached)
    torch.testing.assert_close(output.loss, (-w * log_ratio.exp() * advantage).detach())
    assert ((gradient - through).abs() > 0.05 * gradient.abs()).all()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_gradient_is_nonzero_where_ppo_has_none(advantage: float, evaluate: Any) -> None:
    log_ratio = torch.linspace(-10, 10, 401)
    _, gradient = evaluate(GipoSettings(sigma=1.0, sigma_neg_ratio=1.0), log_ratio, advantage)
    _, ppo_gradient = evaluate(PpoSettings(), log_ratio, advantage)
    dead = ppo_gradient == 0
    assert 190 < dead.sum() < 201  # one side, less the clip range
    assert (gradient != 0).all()
    assert (gradient.sign() == -math.copysign(1, advantage)).all()


def test_sigma_depends_on_the_sign_of_the_advantage(evaluate: Any) -> None:
    objective = GipoSettings(sigma=1.0, sigma_neg_ratio=0.5)
    output, _ = evaluate(objective, [1.0, 1.0, 1.0], torch.tensor([2.0, -2.0, 0.0]))
    # log w + log rho = 1 - 1/2 where A > 0; 1 - 1 / (2 * 0.25) = -1 elsewhere, zero included.
    expected = torch.tensor([math.exp(0.5), math.exp(-1), math.exp(-1)])
    torch.testing.assert_close(output.coefficient, expected)


def test_laplacian_is_bounded_only_up_to_sigma_one(evaluate: Any) -> None:
    log_ratio = torch.linspace(-50, 50, 101)

    def largest(sigma: float) -> float:
        objective = GipoSettings(sigma=sigma, kernel="laplacian", log_ratio_clamp=1e3)
        return evaluate(objective, log_ratio, 1.0)[0].coefficient.max().item()

    # log w + log rho = log rho (1 - 1 / sigma) above 0.
    assert largest(0.5) == pytest.approx(1.0)
    assert largest(1.0) == pytest.approx(1.0)
    assert largest(1.25) == pytest.approx(math.exp(10), rel=1e-4)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_cauchy_is_unbounded_without_a_clamp(sigma: float, evaluate: Any) -> None:
    objective = GipoSettings(sigma=sigma, kernel="cauchy", log_ratio_clamp=1e3)
    output, _ = evaluate(objective, [10.0, 20.0, 50.0], 1.0)
    assert (output.coefficient.diff() > 1e3).all()


@pytest.mark.parametrize("kernel", ["laplacian", "cauchy"])
def test_heavy_kernels_are_clamped_unless_told_otherwise(kernel: Any, evaluate: Any) -> None:
    assert GipoSettings().effective_log_ratio_clamp is None
    assert GipoSettings(log_ratio_clamp=3.0).effective_log_ratio_clamp == 3.0
    objective = GipoSettings(sigma=100.0, sigma_neg_ratio=1.0, kernel=kernel)
    assert objective.effective_log_ratio_clamp == 5.0
    output, _ = evaluate(objective, [5.0, 6.0, 80.0], 1.0)
    assert (output.coefficient == output.coefficient[0]).all()
    assert output.coefficient[0] <= math.exp(5)


@pytest.mark.parametrize("kernel", KERNEL_NAMES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_clamp_never_makes_a_gradient_zero(kernel: Any, advantage: float, evaluate: Any) -> None:
    objective = GipoSettings(sigma=1.0, sigma_neg_ratio=1.0, kernel=kernel, log_ratio_clamp=2.0)
    output, gradient = evaluate(objective, [-80.0, -2.5, 2.5, 80.0], advantage)
    assert (gradient != 0).all()
    inside, _ = evaluate(objective, [-2.0, 2.0], advantage)
    torch.testing.assert_close(output.coefficient, inside.coefficient.repeat_interleave(2))
    # The log-ratio that is reported is the true one.
    assert output.log_ratio.tolist() == [-80.0, -2.5, 2.5, 80.0]


def test_gaussian_meets_no_overflow_at_extremes(evaluate: Any) -> None:
    output, gradient = evaluate(GipoSettings(sigma=1.0), [-80.0, 80.0], 1.0)
    assert output.coefficient.tolist() == [0.0, 0.0]  # exp(-3200 +- 80) underflows, and to 0 exactly
    assert gradient.tolist() == [0.0, 0.0]
    wide, _ = evaluate(GipoSettings(sigma=10.0), [-80.0, 80.0], 1.0)
    expected = torch.tensor([math.exp(-32 - 80), math.exp(-32 + 80)])
    torch.testing.assert_close(wide.coefficient, expected, rtol=1e-5, atol=0.0)
