"""GIPO: importance sampling whose steps are damped by a smooth, detached trust weight.

    L = -E_mu[ w(rho) rho A ],  w detached;   grad L = -E_mu[ w(rho) rho A grad log pi ]

The direction of each token's gradient is that of plain importance sampling; only its size is damped, and
(unlike PPO's) it never becomes zero, so that stale samples keep teaching. Each term is bounded by
exp(sigma^2 / 2) |A| with the gaussian kernel, which plain importance sampling does not offer.

Which sigma damps what (gaussian; the coefficient w rho of a token, its bound, and the |log rho| from which
w < 1e-3):

    sigma   bound of w rho   w = 1/2 at |log rho|   w < 1e-3 from |log rho|
    0.2     1.020            0.24                   0.74
    0.5     1.133            0.59                   1.86
    1.0     1.649            1.18                   3.72
    2.0     7.389            2.35                   7.43

``sigma=auto`` follows the data instead (``objectives.adaptive_sigma``).

Source: GIPO, arXiv 2603.03955.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from gipo_envs.errors import UserError, nearest
from gipo_vla.objectives.adaptive_sigma import AdaptiveSigma
from gipo_vla.objectives.base import Surrogate, by_sign, finite_exp, register
from gipo_vla.objectives.kernels import DEFAULT_LOG_RATIO_CLAMP, KERNELS, KernelName


@register
@dataclass(frozen=True)
class GipoSettings:
    """Gaussian-weighted importance sampling: old data is damped, never dead."""

    name: Literal["gipo"] = "gipo"
    sigma: float | Literal["auto"] = 1.0
    """Width of the trust kernel in nats of log-ratio. Lower it (0.5, 0.2) where training is unstable, raise
    it where stale data teach too slowly; towards infinity GIPO becomes plain importance sampling. auto takes
    the width at which the samples of recent updates count most evenly."""
    sigma_neg_ratio: float = 0.5
    """sigma is multiplied by this where the advantage is not positive. Below 1 to be more careful with
    pushing stale actions down than with pulling them up; 1 for the symmetric method."""
    kernel: KernelName = "gaussian"
    """gaussian unless you study kernels: the others have heavier tails and need the clamp."""
    log_ratio_clamp: float | None = None
    """Clamp log rho to plus or minus this inside the coefficient; it bounds the coefficient and never makes
    a gradient zero. None takes the kernel's own: no clamp for gaussian, 5 for laplacian and cauchy."""
    auto_lowest: float = 0.2
    """The least sigma that auto may take."""
    auto_highest: float = 2.0
    """The largest sigma that auto may take: it bounds the coefficient by exp(sigma^2 / 2)."""

    def __post_init__(self) -> None:
        word = isinstance(self.sigma, str)
        if self.sigma != "auto" and (word or not 0 < float(self.sigma) < math.inf):
            raise UserError(
                f"objective.sigma is {self.sigma}: it must be above 0; 0.2 to 2 is usual, "
                "and auto follows the data"
            )
        if not 0 < self.auto_lowest < self.auto_highest < math.inf:
            raise UserError(
                f"objective.auto_lowest is {self.auto_lowest}, objective.auto_highest {self.auto_highest}: "
                "the first must be above 0 and below the second; 0.2 and 2 are usual"
            )
        if not 0 < self.sigma_neg_ratio < float("inf"):
            raise UserError(
                f"objective.sigma_neg_ratio is {self.sigma_neg_ratio}: it must be above 0; 0.5 or 1 is usual"
            )
        if self.kernel not in KERNELS:
            raise UserError(
                f"objective.kernel is {self.kernel}: there is no such kernel; {nearest(self.kernel, KERNELS)}"
            )
        if self.log_ratio_clamp is not None and not self.log_ratio_clamp > 0:
            raise UserError(
                f"objective.log_ratio_clamp is {self.log_ratio_clamp}: it must be above 0, or null for the "
                "kernel's own (none for gaussian, 5 for laplacian and cauchy)"
            )

    @property
    def effective_log_ratio_clamp(self) -> float | None:
        """The clamp in force, with None resolved to the kernel's own."""
        if self.log_ratio_clamp is not None:
            return self.log_ratio_clamp
        return DEFAULT_LOG_RATIO_CLAMP[self.kernel]

    def adaptive(self) -> AdaptiveSigma | None:
        """What finds sigma where it is auto."""
        if self.sigma != "auto":
            return None
        return AdaptiveSigma(lambda sigma: replace(self, sigma=sigma), self.auto_lowest, self.auto_highest)

    def surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Surrogate:
        """Loss -w rho A, coefficient w rho = exp(log w + log rho).

        Raises:
            ValueError: sigma is auto; ``adaptive().settings`` has the number in force.
        """
        if isinstance(self.sigma, str):
            raise ValueError("sigma is auto: take the settings in force, GipoSettings.adaptive().settings")
        clamp = self.effective_log_ratio_clamp
        if clamp is not None:
            log_ratio = log_ratio.clamp(-clamp, clamp)
        sigma = by_sign(advantages, self.sigma, self.sigma * self.sigma_neg_ratio)
        coefficient = finite_exp(KERNELS[self.kernel](log_ratio, sigma) + log_ratio)
        return Surrogate(-coefficient * advantages, coefficient)
