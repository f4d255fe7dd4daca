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
    CispoSettings,
    DecoupledPpoSettings,
    DppoSettings,
    GipoSettings,
    M2poSettings,
    NoClipSettings,
    PpoSettings,
    RegularizerSettings,
    SapoSettings,
    Tokens,
    VespoSettings,
    objective_loss,
)
from gipo_vla.objectives.base import TokenObjective
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
    DecoupledPpoSettings(),
    DecoupledPpoSettings(behaviour_cap=None),
    DecoupledPpoSettings(beyond_cap="truncate"),
    M2poSettings(),
    M2poSettings(least_low=0, least_high=0),
    CispoSettings(),
    CispoSettings(clip_low=0.2),
    CispoSettings(truncation=2),
    VespoSettings(),
    VespoSettings(k_pos=49, lambda_pos=0.01),
    DppoSettings(),
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
def test_masked_tokens_are_never_looked_at(objective: Any, context: Any) -> None:
    mask = torch.tensor([[[True, True], [True, False]], [[False, False], [False, False]]])
    clean = torch.tensor([[[0.1, -0.3], [0.7, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # Probabilities of a hundredth and less: hardly any can move far.
    garbage = torch.where(mask, clean - 5.0, torch.nan).requires_grad_()
    advantages = torch.tensor([1.5, torch.nan])
    behaviour = torch.where(mask, -5.0, torch.inf)
    own = context(objective, torch.where(mask, clean, torch.nan), advantages, mask)
    output = objective_loss(garbage, behaviour, advantages, mask, objective, **own)
    (gradient,) = torch.autograd.grad(output.loss.sum(), garbage)
    for tensor in (*output, gradient):
        assert tensor.isfinite().all()
        assert (tensor[~mask] == 0).all()
    assert (output.loss[mask] != 0).all()


@every_objective
def test_one_advantage_a_transition_reaches_all_its_tokens(objective: Any, context: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(3, 4, 2, generator=generator)
    behaviour, mask = torch.zeros(3, 4, 2), torch.ones(3, 4, 2, dtype=torch.bool)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    own = context(objective, log_probs, advantages, mask)
    by_transition, by_token, broadcast = (
        objective_loss(log_probs, behaviour, given, mask, objective, **own)
        for given in (advantages, advantages.view(3, 1, 1).expand(3, 4, 2), advantages.view(3, 1, 1))
    )
    for a, b, c in zip(by_transition, by_token, broadcast):
        assert a.shape == (3, 4, 2)
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@every_objective
def test_low_precision_log_probs_are_handled_in_float32(objective: Any, context: Any) -> None:
    log_probs = torch.tensor([[[0.5, -0.5]]], dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(1, 1, 2, dtype=torch.bool)
    own = context(objective, log_probs.detach(), torch.ones(1), mask)
    output = objective_loss(log_probs, torch.zeros(1, 1, 2), torch.ones(1), mask, objective, **own)
    assert {tensor.dtype for tensor in output} == {torch.float32}
    output.loss.sum().backward()
    assert log_probs.grad is not None


@every_objective
def test_advantages_get_no_gradient(objective: Any, context: Any) -> None:
    log_probs = torch.zeros(1, 1, 1, requires_grad=True)
    advantages = torch.ones(1, requires_grad=True)
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    own = context(objective, log_probs.detach(), advantages.detach(), mask)
    objective_loss(log_probs, torch.zeros(1, 1, 1), advantages, mask, objective, **own).loss.sum().backward()
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

    def surrogate(dtype: torch.dtype) -> Any:
        x, own = (torch.tensor([[[value]]], dtype=dtype) for value in (log_ratio, advantage))
        if not isinstance(objective, TokenObjective):
            return objective.surrogate(x, own)
        # What stands in for the statistics of an update and for other numbers is exact in both.
        half, lag = torch.full_like(x, 0.5), torch.full_like(x, 4.0)
        statistics = torch.tensor([0.75, 0.0], dtype=torch.float64)
        return objective.surrogate_of(Tokens(x, own, -8 - x.abs(), lag, half, statistics))

    single, double = surrogate(torch.float32), surrogate(torch.float64)
    for a, b in zip(single, double):
        assert a.dtype == torch.float32
        assert b.dtype == torch.float64
        # Large negative exponents are coarse in float32, but what they are the exponents of is below atol.
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-12)


def test_registry_lists_what_is_available() -> None:
    old_data = {"cispo", "decoupled_ppo", "dppo", "m2po", "vespo"}
    assert {"gipo", "no_clip", "ppo", "sapo"} | old_data <= set(registry.objectives.classes())
    with pytest.raises(UserError, match=r"objective\.name is 'gippo': .*nearest: gipo"):
        registry.objectives.get("gippo")
    with pytest.raises(UserError, match=r"objective\.name is 'zzz': .*available: .*gipo, .*no_clip"):
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
        (lambda: GipoSettings(sigma="narrow"), r"objective\.sigma is narrow.*auto follows the data"),  # type: ignore[arg-type]
        (lambda: GipoSettings(auto_lowest=3), r"auto_lowest is 3, .*auto_highest 2\.0: the first must be"),
        (lambda: DecoupledPpoSettings(clip_low=0), r"objective\.clip_low is 0: it must be between 0 and 1"),
        (lambda: DecoupledPpoSettings(clip_high=-1), r"objective\.clip_high is -1: it must be above 0"),
        (lambda: DecoupledPpoSettings(behaviour_cap=0.5), r"behaviour_cap is 0\.5: it must be at least 1"),
        (lambda: DecoupledPpoSettings(proximal="old"), r"proximal is old: it must be interpolated or sync"),  # type: ignore[arg-type]
        (lambda: DecoupledPpoSettings(beyond_cap="x"), r"beyond_cap is x: it must be drop or truncate"),  # type: ignore[arg-type]
        (lambda: M2poSettings(budget=0), r"objective\.budget is 0: it must be above 0; 0\.04 is usual"),
        (lambda: M2poSettings(least_low=1), r"objective\.least_low is 1: it must be at least 0 and below 1"),
        (lambda: M2poSettings(least_high=-1), r"objective\.least_high is -1: it must be at least 0"),
        (lambda: CispoSettings(clip_high=0), r"objective\.clip_high is 0: it must be above 0"),
        (lambda: CispoSettings(clip_low=2), r"objective\.clip_low is 2: it must be above 0 and at most 1"),
        (lambda: CispoSettings(truncation=0.5), r"objective\.truncation is 0\.5: it must be at least 1"),
        (lambda: CispoSettings(truncation=2, clip_low=1), r"clip_low is 1: truncated importance sampling"),
        (lambda: VespoSettings(k_neg=0), r"objective\.k_neg is 0: it must be above 0"),
        (lambda: DppoSettings(delta_low=2), r"objective\.delta_low is 2: it must be above 0 and at most 1"),
        (lambda: DppoSettings(ratio_cap=0.5), r"objective\.ratio_cap is 0\.5: it must be at least 1"),
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
