"""AdamW whose groups are clipped apart.

DeepSpeed clips the gradient of all groups by one norm, so a value loss of a new scale would shrink the
policy's steps. ZeRO hands each group's share of the averaged gradient to the optimizer it wraps, one group
at a time, so clipping there is exact for every number of ranks; DeepSpeed's own clipping stays off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gipo_vla.distributed.group import sum_over_ranks

PART = 2**22
"""Elements of a gradient that are squared at once: ZeRO hands over a whole group as one vector, and that in
float64, twice, would be the largest thing of an update."""


class GroupClippedAdamW(torch.optim.AdamW):
    """AdamW with a ``clip`` and a ``name`` in each group; no weight decay.

    ``gradient_norms`` holds each group's norm before clipping, of the last step: float64 () on the device,
    where it also decides on the clipping, so that nobody waits for it. Groups named in ``resting`` are left
    out of a step: their weights, moments and counts stay, and they have no norm.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, betas=betas, eps=eps, weight_decay=0.0)
        self.gradient_norms: dict[str, Tensor] = {}
        self.resting: frozenset[str] = frozenset()

    def create_state(self) -> None:
        """Create the moments of every group now instead of at the first step.

        ZeRO links them to parameter names after the first step of the first group, when those of later
        groups would not exist yet; and a checkpoint needs something to load into.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            if group["name"] in self.resting:
                self.gradient_norms.pop(group["name"], None)
                for parameter in group["params"]:
                    parameter.grad = None
                continue
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if not gradients:
                continue
            # Each rank holds its partition: the squares add up to those of the whole gradient.
            parts = [part for gradient in gradients for part in gradient.flatten().split(PART)]
            squares = torch.stack([part.double().square().sum() for part in parts]).sum()
            norm = sum_over_ranks(squares).sqrt()
            self.gradient_norms[group["name"]] = norm
            factor = torch.where(norm > group["clip"], group["clip"] / (norm + 1e-6), 1.0)
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
        super().step(closure)
