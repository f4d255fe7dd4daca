"""PPO's clip in log space, for objectives that move or widen the box."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped(log_ratio: Tensor, advantages: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the ratio c in min(r A, clip(r) A) = c A, and where it has a gradient (bool).

    As in PPO (arXiv 1707.06347, equation 7), only the side to which the advantage pushes is clipped.

    Args:
        log_ratio, advantages: of one shape.
        bound: of the same shape: the log of the upper bound where A > 0, that of the lower elsewhere; plus or
            minus infinity for none.
    """
    active = torch.where(advantages > 0, log_ratio <= bound, log_ratio >= bound)
    return torch.where(active, log_ratio, bound), active
