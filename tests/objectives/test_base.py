"""The contract that every objective keeps: masks, shapes, finiteness, registry, settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_envs.errors import UserError
from gipo_vla import objectives
from gipo_vla.objectives import (
    GipoSettings,
    NoClipSettings,
    PpoSettings,
    RegularizerSettings,
    SapoSettings,
    objective_loss,
)
from gipo_vla.settings import registry

EVERY = [
    GipoSettings(),
    GipoSettings(sigma=0.2),
    GipoSettings(sigma=1e6),
    GipoSettings(kernel="laplacian"),
    GipoSettings(kernel="cauchy"),
    GipoSettings(kernel="cauchy", log_ratio_clamp=1e3),
    PpoSettings(),
    SapoSettings(),
    NoClipSettings(),
]
every_objective = pytest.mark.parametrize("objective", EVERY, ids=repr)


@every_objective
@pytest.mark.parametrize("advantage", [-2.0, 0.0, 3.0])
def test_nothing_overflows_however_stale(objective: Any, advantage: float, evaluate: Any) -> None:
    log_ratio = [-200.0, -88.8, -80.0, -50.0, 0.0, 50.0, 80.0, 88.8, 200.0]
    output, gradient = evaluate(objective, log_ratio, advantage)
    for tensor in (*output, gradient):
        assert tensor.isfinite().all()


@every_objective
def test_gradient_is_minus_coefficient_times_advantage(objective: Any, evaluate: Any) -> None:
    log_ratio = torch.linspace(-3, 3, 25).repeat(2)
    advantage = torch.tensor([1.5, -0.5]).repeat_interleave(25)
    output, gradient = evaluate(objective, log_ratio, advantage)
    torch.testing.assert_close(gradient, -output.coefficient * advantage)
    assert (output.coefficient >= 0).all()
    assert not output.coefficient.requires_grad
    assert not output.log_ratio.requires_grad
    torch.testing.assert_close(output.log_ratio, log_ratio)


@every_objective
def test_on_policy_every_objective_is_the_policy_gradient(objective: Any, evaluate: Any) -> None:
    advantage = torch.tensor([2.0, -3.0])
    output, gradient = evaluate(objective, [0.0, 0.0], advantage)
    torch.testing.assert_close(output.coefficient, torch.ones(2))
    torch.testing.assert_close(gradient, -advantage)


@every_objective
def test_masked_tokens_are_never_looked_at(objective: Any) -> None:
    mask = torch.tensor([[[True, True], [True, False]], [[False, False], [False, False]]])
    clean = torch.tensor([[[0.1, -0.3], [0.7, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    garbage = torch.where(mask, clean, torch.nan).requires_grad_()
    advantages = torch.tensor([1.5, torch.nan])
    output = objective_loss(garbage, torch.where(mask, 0.0, torch.inf), advantages, mask, objective)
    (gradient,) = torch.autograd.grad(output.loss.sum(), garbage)
    for tensor in (*output, gradient):
        assert tensor.isfinite().all()
        assert (tensor[~mask] == 0).all()
    assert (output.loss[mask] != 0).all()


@every_objective
def test_one_advantage_a_transition_reaches_all_its_tokens(objective: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(3, 4, 2, generator=generator)
    behaviour, mask = torch.zeros(3, 4, 2), torch.ones(3, 4, 2, dtype=torch.bool)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    by_transition = objective_loss(log_probs, behaviour, advantages, mask, objective)
    by_token = objective_loss(log_probs, behaviour, advantages.view(3, 1, 1).expand(3, 4, 2), mask, objective)
    broadcast = objective_loss(log_probs, behaviour, advantages.view(3, 1, 1), mask, objective)
    for a, b, c in zip(by_transition, by_token, broadcast):
        assert a.shape == (3, 4, 2)
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@every_objective
def test_low_precision_log_probs_are_handled_in_float32(objective: Any) -> None:
    log_probs = torch.tensor([[[0.5, -0.5]]], dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(1, 1, 2, dtype=torch.bool)
    output = objective_loss(log_probs, torch.zeros(1, 1, 2), torch.ones(1), mask, objective)
    assert {tensor.dtype for tensor in output} == {torch.float32}
    output.loss.sum().backward()
    assert log_probs.grad is not None


@every_objective
def test_advantages_get_no_gradient(objective: Any) -> None:
    log_probs = torch.zeros(1, 1, 1, requires_grad=True)
    advantages = torch.ones(1, requires_grad=True)
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    objective_loss(log_probs, torch.zeros(1, 1, 1), advantages, mask, objective).loss.sum().backward()
    assert log_probs.grad is not None
    assert advantages.grad is None


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    index=st.integers(0, len(EVERY) - 1),
    log_ratio=st.floats(-80, 80, width=32),
    advantage=st.floats(-10, 10, width=32),
)
def test_surrogates_agree_in_both_precisions(index: int, log_ratio: float, advantage: float) -> None:
    objective: Any = EVERY[index]
    single, double = (
        objective.surrogate(torch.tensor([log_ratio], dtype=d), torch.tensor([advantage], dtype=d))
        for d in (torch.float32, torch.float64)
    )
    for a, b in zip(single, double):
        assert a.dtype == torch.float32
        assert b.dtype == torch.float64
        # Large negative exponents are coarse in float32, but what they are the exponents of is below atol.
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-12)


def test_registry_lists_what_is_available() -> None:
    assert {"gipo", "no_clip", "ppo", "sapo"} <= set(registry.objectives.classes())
    with pytest.raises(UserError, match=r"objective\.name is 'gippo': .*nearest: gipo"):
        registry.objectives.get("gippo")
    with pytest.raises(UserError, match=r"objective\.name is 'zzz': .*available: .*gipo, no_clip"):
        registry.objectives.get("zzz")

    @dataclass(frozen=True)
    class Another:
        name: str = "gipo"

    with pytest.raises(ValueError, match="twice"):
        objectives.register(Another)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GipoSettings(sigma=-1), r"objective\.sigma is -1: it must be above 0; 0\.2 to 2 is usual"),
        (lambda: GipoSettings(sigma=float("nan")), r"objective\.sigma is nan"),
        (lambda: GipoSettings(sigma=float("inf")), r"objective\.sigma is inf"),
        (lambda: GipoSettings(sigma_neg_ratio=0), r"objective\.sigma_neg_ratio is 0: it must be above 0"),
        (lambda: GipoSettings(kernel="gausian"), r"kernel is gausian.*nearest: gaussian"),  # type: ignore[arg-type]
        (lambda: GipoSettings(log_ratio_clamp=0), r"log_ratio_clamp is 0: it must be above 0, or null"),
        (lambda: PpoSettings(clip_low=1), r"objective\.clip_low is 1: it must be between 0 and 1"),
        (lambda: PpoSettings(clip_high=0), r"objective\.clip_high is 0: it must be above 0"),
        (lambda: SapoSettings(tau_neg=-2), r"objective\.tau_neg is -2: it must be above 0"),
        (lambda: RegularizerSettings(entropy_coefficient=-1), r"entropy_coefficient is -1: it must be 0"),
        (lambda: RegularizerSettings(kl_behaviour="k2"), r"kl_behaviour is k2: it must be k3 or exact"),  # type: ignore[arg-type]
    ],
)
def test_bad_settings_are_explained(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_settings_are_made_from_plain_values() -> None:
    validate = registry.objectives.validate
    assert validate({"name": "gipo", "sigma": 0.5, "kernel": "cauchy"}) == GipoSettings(
        sigma=0.5, kernel="cauchy"
    )
    assert validate("ppo") == validate({"name": "ppo"}) == PpoSettings()
    for wrong, message in (
        ({"name": "gipo", "sigma": -1}, "it must be above 0"),
        ({"name": "gipo", "sigma": "wide"}, r"objective\.sigma is 'wide'"),
        ({"name": "ppo", "sigma": 1.0}, r"unknown setting 'objective\.sigma'"),
        ({"sigma": 1.0}, "expected settings with a name"),
    ):
        with pytest.raises(UserError, match=message):
            validate(wrong)
