"""What changes over the iterations of a run."""

from __future__ import annotations

import math


def learning_rate_factor(
    progress: float, warmup: int, total: int, shape: str = "cosine", final: float = 0.0
) -> float:
    """Factor on the learning rate after ``progress`` iterations (a fraction within one is allowed).

    Rises linearly from 0 over ``warmup`` iterations, then falls to ``final`` at ``total`` along half a
    cosine (or stays at 1 for ``constant``) and stays there.
    """
    if progress < warmup:
        return progress / warmup
    if shape == "constant":
        return 1.0
    fraction = min(1.0, (progress - warmup) / max(total - warmup, 1))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * fraction))


def entropy_factor(progress: float, total: int, final: float) -> float:
    """Factor on the entropy coefficient: from 1 in a straight line to ``final`` at ``total`` iterations."""
    return 1 - (1 - final) * min(1.0, progress / total)
