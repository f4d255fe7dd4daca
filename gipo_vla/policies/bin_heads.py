"""From the few numbers that a network gives for a token to logits over its bins.

Bins lie evenly on [-1, 1]. A head without a notion of neighbours learns each bin by itself; the others share
what one sample teaches with the bins around it, and have fewer numbers to learn.

    independent     a logit a bin
    ordinal         a number a bin, added up from the left: a bin learns its difference from its neighbour
                    (Tang and Agrawal, arXiv 1901.10500: a sum of log-sigmoids, which differs by a constant)
    interpolated    logits at a few evenly spaced knots, and straight lines between them
    gaussian        mean and standard deviation of a normal distribution whose tails fall into the outer bins:
                    what an action drawn from it and clipped to [-1, 1] does (exact there, the density at the
                    centre elsewhere)

Shapes: (..., P) numbers of a token give (..., V) logits. Only differences of logits mean anything.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

HeadName = Literal["independent", "ordinal", "interpolated", "gaussian"]


class BinHead(Protocol):
    """What turns a token's numbers into logits over its bins; it trains nothing itself."""

    numbers: int
    """P, that the network gives for a token."""

    def initial_bias(self) -> Tensor:
        """float32 (P,): the numbers of a policy that knows nothing yet."""
        ...

    def __call__(self, numbers: Tensor) -> Tensor:
        """Logits (..., V) of numbers (..., P); differentiable."""
        ...


class Independent(nn.Module):
    """A logit a bin."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.numbers = bins

    def initial_bias(self) -> Tensor:
        return torch.zeros(self.numbers)

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers


class Ordinal(nn.Module):
    """Each number is a bin's logit minus that of its left neighbour (the first one means nothing)."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.numbers = bins

    def initial_bias(self) -> Tensor:
        return torch.zeros(self.numbers)

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers.float().cumsum(-1)


class Interpolated(nn.Module):
    """Straight lines between the logits at knots, of which the outer ones lie on the outer bins."""

    weights: Tensor

    def __init__(self, bins: int, knots: int) -> None:
        super().__init__()
        self.numbers = knots
        at = torch.linspace(0, knots - 1, bins, dtype=torch.float64)
        distance = (at[None] - torch.arange(knots, dtype=torch.float64)[:, None]).abs()
        self.register_buffer("weights", (1 - distance).clamp_min(0).float(), persistent=False)

    def initial_bias(self) -> Tensor:
        return torch.zeros(self.numbers)

    def forward(self, numbers: Tensor) -> Tensor:
        return numbers @ self.weights


class Gaussian(nn.Module):
    """A normal distribution, clipped: numbers are its mean, and what softplus makes its deviation of.

    The deviation is at least half the distance of two bins: below that a density at the centres says nothing.
    """

    centres: Tensor

    def __init__(self, bins: int, initial_std: float) -> None:
        super().__init__()
        self.numbers = 2
        self.initial_std = initial_std
        self.width = 2 / (bins - 1)
        self.register_buffer("centres", torch.linspace(-1, 1, bins)[1:-1], persistent=False)

    @property
    def smallest_std(self) -> float:
        return self.width / 2

    def initial_bias(self) -> Tensor:
        above = max(self.initial_std - self.smallest_std, 1e-3)
        return torch.tensor([0.0, above + math.log(-math.expm1(-above))])

    def forward(self, numbers: Tensor) -> Tensor:
        mean, raw = numbers.float().unsqueeze(-1).unbind(-2)
        std = self.smallest_std + functional.softplus(raw)
        inner = -0.5 * ((self.centres - mean) / std).square() - std.log()
        inner = inner + (math.log(self.width) - 0.5 * math.log(2 * math.pi))
        edge = 1 - self.width / 2
        outer = (torch.special.log_ndtr((-edge - mean) / std), torch.special.log_ndtr((mean - edge) / std))
        return torch.cat([outer[0], inner, outer[1]], dim=-1)


def build(
    name: HeadName, bins: int, knots: int, initial_std: float
) -> Independent | Ordinal | Interpolated | Gaussian:
    """The head of a name; ``knots`` and ``initial_std`` are read by the one that has them."""
    match name:
        case "ordinal":
            return Ordinal(bins)
        case "interpolated":
            return Interpolated(bins, knots)
        case "gaussian":
            return Gaussian(bins, initial_std)
        case "independent":
            return Independent(bins)


def numbers_of(name: HeadName, bins: int, knots: int) -> int:
    """P of a head, without building it."""
    return {"interpolated": knots, "gaussian": 2}.get(name, bins)
