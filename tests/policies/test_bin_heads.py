"""Heads give distributions over bins: by identities and by hand."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from gipo_vla.policies import bin_heads

NAMES = get_args(bin_heads.HeadName)
BINS, KNOTS = 9, 3


def head(name: bin_heads.HeadName, bins: int = BINS, initial_std: float = 0.5) -> bin_heads.BinHead:
    return bin_heads.build(name, bins, KNOTS, initial_std)


def probabilities(own: bin_heads.BinHead, *numbers: float) -> Tensor:
    return torch.softmax(own(torch.tensor(numbers)).double(), -1)


def raw(std: float, own: bin_heads.BinHead) -> float:
    """The number that makes a Gaussian head's deviation ``std``."""
    assert isinstance(own, bin_heads.Gaussian)
    return math.log(math.expm1(std - own.smallest_std))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_gradients(name: bin_heads.HeadName) -> None:
    own = head(name)
    assert own.numbers == bin_heads.numbers_of(name, BINS, KNOTS)
    numbers = torch.randn(5, 2, own.numbers, requires_grad=True)
    logits = own(numbers)
    assert logits.shape == (5, 2, BINS) and logits.dtype == torch.float32
    torch.log_softmax(logits, -1)[..., 4].sum().backward()
    assert numbers.grad is not None and numbers.grad.isfinite().all()
    assert (numbers.grad != 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_a_new_policy_prefers_no_side(name: bin_heads.HeadName) -> None:
    own = head(name)
    start = torch.softmax(own(own.initial_bias()), -1)
    torch.testing.assert_close(start, start.flip(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["independent", "ordinal", "interpolated"])
def test_zeros_are_uniform(name: bin_heads.HeadName) -> None:
    own = head(name)
    even = torch.full((BINS,), 1 / BINS).double()
    torch.testing.assert_close(probabilities(own, *[0.0] * own.numbers), even)


def test_ordinal_is_a_sum_of_log_sigmoids_up_to_a_constant() -> None:
    """As Tang and Agrawal write it: bins up to the chosen one say yes, those beyond it no."""
    numbers = torch.randn(BINS, generator=torch.Generator().manual_seed(0)).double()
    yes, no = torch.nn.functional.logsigmoid(numbers), torch.nn.functional.logsigmoid(-numbers)
    published = torch.stack([yes[: i + 1].sum() + no[i + 1 :].sum() for i in range(BINS)])
    differences = head("ordinal")(numbers) - published
    torch.testing.assert_close(differences, differences[:1].expand(BINS).float(), check_dtype=False)


def test_interpolated_by_hand() -> None:
    """Nine bins and knots 0, 4, 8: a quarter of the way a bin."""
    logits = head("interpolated")(torch.tensor([0.0, 4.0, -4.0]))
    torch.testing.assert_close(logits, torch.tensor([0.0, 1, 2, 3, 4, 2, 0, -2, -4]))


def test_gaussian_by_hand() -> None:
    """Three bins, edges at -0.5 and 0.5, mean 0, deviation 1: tails of 0.3085 and a density of 0.3989."""
    own = head("gaussian", bins=3)
    expected = torch.tensor([0.308538, 0.398942, 0.308538], dtype=torch.float64)
    torch.testing.assert_close(
        probabilities(own, 0.0, raw(1.0, own)), expected / expected.sum(), atol=1e-5, rtol=0
    )


def test_gaussian_is_the_clipped_normal_distribution() -> None:
    """Its bins have what a normal distribution has within their edges, the outer ones its tails."""
    own = head("gaussian", bins=64)
    for mean, std in ((0.0, 0.5), (0.3, 0.2), (-0.95, 0.3), (1.4, 0.4)):
        normal = torch.distributions.Normal(mean, torch.tensor(std).double())
        edges = torch.linspace(-1, 1, 64).double()
        edges = normal.cdf((edges[1:] + edges[:-1]) / 2)
        exact = torch.cat([edges[:1], edges.diff(), 1 - edges[-1:]])
        torch.testing.assert_close(probabilities(own, mean, raw(std, own)), exact, atol=2e-4, rtol=0)


def test_gaussian_mirrors() -> None:
    own = head("gaussian", bins=64)
    one, other = probabilities(own, 0.37, -1.0), probabilities(own, -0.37, -1.0)
    torch.testing.assert_close(one, other.flip(-1), atol=1e-6, rtol=0)


def test_gaussian_teaches_neighbours() -> None:
    """Raising one bin raises the ones beside it; independent bins it lowers."""
    for name, sign in (("gaussian", 1), ("independent", -1)):
        own = head(name, bins=64)
        numbers = own.initial_bias().requires_grad_()
        torch.log_softmax(own(numbers), -1)[40].backward()
        assert numbers.grad is not None
        before, after = (torch.softmax(own(n), -1) for n in (numbers, numbers + 0.01 * numbers.grad))
        assert after[40] > before[40]
        assert sign * (after[41] - before[41]) > 0


@pytest.mark.parametrize("numbers", [(0.0, -1e4), (50.0, -1e4), (-1e4, 0.0), (0.0, 1e4), (1e4, 1e4)])
def test_gaussian_stays_finite(numbers: tuple[float, float]) -> None:
    own = head("gaussian", bins=64)
    given = torch.tensor(numbers, requires_grad=True)
    log_probs = torch.log_softmax(own(given), -1)
    log_probs[0].backward()
    assert log_probs.isfinite().all()
    assert given.grad is not None and given.grad.isfinite().all()


def test_initial_std_is_the_deviation_at_the_start() -> None:
    own = head("gaussian", bins=256, initial_std=0.2)
    start = torch.softmax(own(own.initial_bias()).double(), -1)
    centres = torch.linspace(-1, 1, 256).double()
    assert float((start * centres.square()).sum().sqrt()) == pytest.approx(0.2, abs=2e-3)
