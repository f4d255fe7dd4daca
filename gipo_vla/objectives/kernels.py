"""Trust kernels w(rho) of GIPO, in log space.

With z = log rho / sigma:

    gaussian   w = exp(-z^2 / 2)   w rho <= exp(sigma^2 / 2), reached at log rho = sigma^2
    laplacian  w = exp(-|z|)       w rho <= 1 for sigma <= 1, unbounded above
    cauchy     w = 1 / (1 + z^2)   w rho unbounded for every sigma

All are even in log rho, so w(rho) = w(1 / rho): moving away by a factor costs the same in either
direction. Returning log w lets the caller form exp(log w + log rho) with one exponential: no overflow of
rho ever meets an underflow of w.

Source: GIPO, arXiv 2603.03955.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

KernelName = Literal["gaussian", "laplacian", "cauchy"]


def gaussian(log_ratio: Tensor, sigma: Tensor) -> Tensor:
    """log w = -z^2 / 2."""
    return -0.5 * (log_ratio / sigma).square()


def laplacian(log_ratio: Tensor, sigma: Tensor) -> Tensor:
    """log w = -|z|."""
    return -(log_ratio / sigma).abs()


def cauchy(log_ratio: Tensor, sigma: Tensor) -> Tensor:
    """log w = -log(1 + z^2)."""
    return -torch.log1p((log_ratio / sigma).square())


KERNELS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gaussian": gaussian,
    "laplacian": laplacian,
    "cauchy": cauchy,
}

DEFAULT_LOG_RATIO_CLAMP: dict[str, float | None] = {"gaussian": None, "laplacian": 5.0, "cauchy": 5.0}
"""Only the gaussian bounds w rho on its own for every sigma; the others need the clamp."""
