"""No-Clip: plain, unclipped importance sampling, L = -E_mu[ rho A ].

Unbiased, with a variance that grows without bound as data age: the reference against which biases are
measured, and what GIPO becomes as sigma grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gipo_vla.objectives.base import Surrogate, finite_exp, register


@register
@dataclass(frozen=True)
class NoClipSettings:
    """Plain importance sampling, unbiased and unbounded; for nearly on-policy data and as a baseline."""

    name: Literal["no_clip"] = "no_clip"

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """Loss -rho A, coefficient rho."""
        ratio = finite_exp(log_ratio)
        return Surrogate(-ratio * advantages, ratio)
